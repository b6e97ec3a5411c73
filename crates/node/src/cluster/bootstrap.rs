//! How a cluster comes to be, once, and how a node finds out that it already has.
//!
//! A node that has not formed only asks. It asks every peer of `--initial-cluster` whether that peer
//! has formed, and forms itself only when **all** of them answered that they have not, with the same
//! plan as its own, twice in a row with the same incarnations. A majority would not be enough: it
//! cannot tell a node that is new from one that was wiped. The second round closes the gap in which a
//! peer forms, is wiped and answers again while the answers of the others are still on their way.
//!
//! Why two clusters cannot both come to life: a node persists one member list in the life of its
//! directory, and takes part only in the cluster of that list. A quorum of one list and a quorum of
//! another list over the same node ids share a node id; its two directories are two incarnations, the
//! second younger than the first cluster, and everyone in the first cluster answers the second
//! incarnation that it is not known.
//!
//! ```text
//!  IDENTITY written ──▶ ask all ──▶ all unformed, same plan ──▶ ask all again ──▶ the same ──▶ persist
//!                          │  ▲                                                                  │
//!                          │  └── someone silent, or with another plan: say who, every 2 s       ▼
//!                          ├── a formed peer recorded my incarnation ──▶ persist its list ──▶   go
//!                          └── a formed peer did not ──▶ refuse, exit 10
//! ```

mod ask;
mod decide;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_config::Config;
use quorate_raft::NodeId;
use tokio::time::Instant;

use crate::cluster::identity::{Formed, Identity, IdentityError};
use crate::exit::Fatal;

pub use ask::AskAnswers;
pub use decide::{Answer, Decision, Waiting, decide};

/// How often a waiting node says for whom it waits.
const SAY_INTERVAL: Duration = Duration::from_secs(2);
/// The pause between rounds of questions; up to half as much again is added by chance.
const ROUND_INTERVAL: Duration = Duration::from_millis(100);

/// What the flags ask for. Nodes form a cluster only when their plans are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    me: NodeId,
    cluster_name: String,
    initial_cluster: BTreeMap<NodeId, String>,
    shards: u32,
    replicas: u32,
    /// Whether shards and replicas were asked for; a default that does not hold needs no word.
    given: (bool, bool),
}

impl Plan {
    /// The plan of node `me`.
    ///
    /// # Errors
    /// A sentence when `me` is not among the initial nodes, or two of them have one address.
    pub fn new(
        me: NodeId,
        cluster_name: &str,
        initial_cluster: BTreeMap<NodeId, String>,
        shards: u32,
        replicas: u32,
    ) -> Result<Self, String> {
        if !initial_cluster.contains_key(&me) {
            return Err(format!(
                "--initial-cluster does not name node {}; it lists every first node, this one too",
                me.0
            ));
        }
        let mut by_address = BTreeMap::new();
        for (node, address) in &initial_cluster {
            if let Some(other) = by_address.insert(address, node) {
                return Err(format!(
                    "--initial-cluster gives {address} to node {} and to node {}",
                    other.0, node.0
                ));
            }
        }
        let cluster_name = cluster_name.to_owned();
        Ok(Self { me, cluster_name, initial_cluster, shards, replicas, given: (true, true) })
    }

    /// The plan that the settings ask for.
    ///
    /// # Errors
    /// [`Fatal::Usage`] with the sentence of [`Plan::new`].
    pub fn of_config(config: &Config) -> Result<Self, Fatal> {
        let initial = config.initial_cluster.iter().map(|(node, at)| (*node, at.to_string()));
        let (initial, name) = (initial.collect(), &config.cluster_name);
        Self::new(config.node_id, name, initial, config.shards, config.replicas)
            .map(|plan| plan.with_given(config.shards_given, config.replicas_given))
            .map_err(Fatal::Usage)
    }

    /// Says which of shards and replicas were asked for, and are not defaults.
    #[must_use]
    pub fn with_given(self, shards: bool, replicas: bool) -> Self {
        Self { given: (shards, replicas), ..self }
    }

    /// What two nodes compare: equal exactly when cluster name, initial cluster, shards and replicas are.
    pub fn hash(&self) -> u64 {
        let mut text = Vec::from(&b"quorate plan 1\0"[..]);
        let mut put = |bytes: &[u8]| {
            text.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
            text.extend_from_slice(bytes);
        };
        put(self.cluster_name.as_bytes());
        for (node, address) in &self.initial_cluster {
            put(&node.0.to_be_bytes());
            put(address.as_bytes());
        }
        put(&self.shards.to_be_bytes());
        put(&self.replicas.to_be_bytes());
        xxhash_rust::xxh3::xxh3_64(&text)
    }

    /// The plan in the spelling of the flags.
    pub fn describe(&self) -> String {
        let nodes: Vec<String> =
            self.initial_cluster.iter().map(|(node, at)| format!("{}={at}", node.0)).collect();
        format!(
            "--cluster-name {} --initial-cluster {} --shards {} --replicas {}",
            self.cluster_name,
            nodes.join(","),
            self.shards,
            self.replicas
        )
    }

    /// Whether a node that has formed may go on with these flags: warnings, one sentence each.
    ///
    /// # Errors
    /// [`IdentityError::Mismatch`] for another cluster name.
    fn check_formed(&self, formed: &Formed) -> Result<Vec<String>, IdentityError> {
        if self.cluster_name != formed.cluster_name {
            return Err(IdentityError::Mismatch(format!(
                "this directory belongs to cluster {}, and this node was started with \
                 --cluster-name {}",
                formed.cluster_name, self.cluster_name
            )));
        }
        let mut warnings = Vec::new();
        let compared = [
            ("--shards", self.given.0, self.shards, formed.shards),
            ("--replicas", self.given.1, self.replicas, formed.replicas),
        ];
        for (flag, was_given, given, kept) in compared {
            if was_given && given != kept {
                warnings
                    .push(format!("{flag} {given} is ignored: the cluster was formed with {kept}"));
            }
        }
        Ok(warnings)
    }
}

/// Why a node does not become a member. It becomes the [`Fatal`] with which the process ends.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The flags or the peers contradict this directory.
    #[error("{0}")]
    Refused(String),
    /// The agreement could not be written, or the directory belongs to another cluster.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl From<BootstrapError> for Fatal {
    fn from(error: BootstrapError) -> Self {
        match error {
            BootstrapError::Refused(sentence) => Self::Identity(sentence),
            BootstrapError::Identity(error) => error.into(),
        }
    }
}

/// Becomes a member: at once when this directory already is one, otherwise as soon as the peers allow.
/// The caller serves [`AskAnswers`] on the peer address before it calls this, else the peers wait for
/// this node for ever. `say` takes the sentences meant for the log: for whom the node waits, warnings.
///
/// Dropping the future stops asking; nothing is half done at any point.
///
/// # Errors
/// [`BootstrapError`]; none of them passes by waiting.
pub async fn run(
    identity: &Arc<Identity>,
    plan: &Plan,
    mut say: impl FnMut(&str),
) -> Result<Formed, BootstrapError> {
    let mut formation = Formation::new(Arc::clone(identity), plan.clone());
    let started = Instant::now();
    let mut said_at: Option<Instant> = None;
    loop {
        if let Some(formed) = identity.formed() {
            for warning in plan.check_formed(&formed)? {
                say(&warning);
            }
            return Ok(formed);
        }
        match formation.round().await {
            Step::Settled(agreed) => {
                identity.set_formed(agreed)?;
                continue;
            }
            Step::Again => continue,
            Step::Refused(sentence) => return Err(BootstrapError::Refused(sentence)),
            Step::Wait(waiting) => {
                // The first second is silent: nodes that start together do not all start at once.
                let due = said_at.map_or(started + Duration::from_secs(1), |at| at + SAY_INTERVAL);
                if Instant::now() >= due {
                    said_at = Some(Instant::now());
                    let whom: Vec<String> = waiting.iter().map(ToString::to_string).collect();
                    say(&format!("waiting to form the cluster: {}", whom.join("; ")));
                }
            }
        }
        tokio::time::sleep(ROUND_INTERVAL.mul_f64(1.0 + rand::random::<f64>() / 2.0)).await;
    }
}

/// What one round of questions came to.
#[derive(Debug)]
enum Step {
    /// Persist this and go.
    Settled(Formed),
    /// The first of two equal rounds; ask again at once.
    Again,
    Wait(Vec<Waiting>),
    Refused(String),
}

/// The questions of one unformed node.
struct Formation {
    identity: Arc<Identity>,
    plan: Plan,
    /// What the last round would have formed.
    seen: Option<Formed>,
}

impl Formation {
    fn new(identity: Arc<Identity>, plan: Plan) -> Self {
        Self { identity, plan, seen: None }
    }

    /// Asks everyone once.
    async fn round(&mut self) -> Step {
        let answers = ask::ask_all(&self.identity, &self.plan).await;
        self.settle(&answers)
    }

    fn settle(&mut self, answers: &BTreeMap<NodeId, Answer>) -> Step {
        let seen = self.seen.take();
        match decide(self.identity.incarnation(), &self.plan, answers) {
            Decision::Form(agreed) if self.plan.initial_cluster.len() == 1 => Step::Settled(agreed),
            Decision::Form(agreed) if seen.as_ref() == Some(&agreed) => Step::Settled(agreed),
            Decision::Form(agreed) => {
                self.seen = Some(agreed);
                Step::Again
            }
            Decision::Join(agreed) => Step::Settled(agreed),
            Decision::Wait(waiting) => Step::Wait(waiting),
            Decision::Refuse(sentence) => Step::Refused(sentence),
        }
    }
}
