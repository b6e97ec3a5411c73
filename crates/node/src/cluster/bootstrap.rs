//! Cluster formation: it happens once, and a node that starts later detects that it has happened.
//!
//! A node that has not formed only asks: it asks every peer of `--initial-cluster` whether that
//! peer has formed, and forms only when **all** of them answered that they have not, with a plan
//! equal to its own, twice in a row with the same incarnations. A majority would not be enough: it
//! cannot tell a node that is new from one that was wiped. The second round covers the case that a
//! peer forms, is wiped and answers again while the answers of the others are still in flight.
//!
//! Two clusters cannot both form: a node persists one member list per data directory, and takes
//! part only in the cluster of that list. A quorum of one list and a quorum of another list over
//! the same node ids share a node id; its two directories are two incarnations, the second younger
//! than the first cluster, and every member of the first cluster rejects the second incarnation as
//! unknown.
//!
//! ```text
//!  IDENTITY written ──▶ ask all ──▶ all unformed, same plan ──▶ ask all again ──▶ same ──▶ persist
//!                        │  ▲                                                               │
//!                        │  └── a peer is silent or has another plan: log it every 2 s      ▼
//!                        ├── a formed peer recorded my incarnation ──▶ persist its list ─▶ start
//!                        └── a formed peer did not ──▶ exit 10
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
use quorate_transport::ProofKey;
use tokio::time::Instant;

use crate::cluster::identity::{Formed, Identity, IdentityError};
use crate::exit::Fatal;

pub use ask::AskAnswers;
pub use decide::{Answer, Decision, Waiting, decide};

/// Interval at which a waiting node logs the peers that it waits for.
const SAY_INTERVAL: Duration = Duration::from_secs(2);
/// Pause between two rounds of questions; up to half of it is added at random.
const ROUND_INTERVAL: Duration = Duration::from_millis(100);

/// Formation plan of the flags. Nodes form a cluster only when their plans are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    me: NodeId,
    cluster_name: String,
    initial_cluster: BTreeMap<NodeId, String>,
    shards: u32,
    replicas: u32,
    /// Whether shards and replicas were given as flags; a default that differs is not reported.
    given: (bool, bool),
}

impl Plan {
    /// The plan of node `me`.
    ///
    /// # Errors
    /// A sentence when `me` is not among the initial nodes, or two of them have the same address.
    pub fn new(
        me: NodeId,
        cluster_name: &str,
        initial_cluster: BTreeMap<NodeId, String>,
        shards: u32,
        replicas: u32,
    ) -> Result<Self, String> {
        if !initial_cluster.contains_key(&me) {
            return Err(format!(
                "--initial-cluster does not name node {}; it must list every first node, \
                 including this one",
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

    /// The plan of the settings.
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

    /// Sets which of shards and replicas were given as flags and are not defaults.
    #[must_use]
    pub fn with_given(self, shards: bool, replicas: bool) -> Self {
        Self { given: (shards, replicas), ..self }
    }

    /// The number that two nodes compare: equal exactly when cluster name, initial cluster, shards
    /// and replicas are equal.
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

    /// Checks the flags of a node that has formed. Returns warnings, one sentence each.
    ///
    /// # Errors
    /// [`IdentityError::Mismatch`] for another cluster name.
    fn check_formed(&self, formed: &Formed) -> Result<Vec<String>, IdentityError> {
        if self.cluster_name != formed.cluster_name {
            return Err(IdentityError::Mismatch(format!(
                "this directory belongs to cluster {}, but this node was started with \
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

/// Error type of formation. It becomes the [`Fatal`] that the process ends with.
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

/// Becomes a member: immediately when this directory already is one, otherwise as soon as the peers
/// allow it. The caller serves [`AskAnswers`] on the peer address before it calls this, otherwise
/// the peers wait for this node forever. `say` receives sentences for the log: the peers that the
/// node waits for, and warnings.
///
/// Dropping the future stops the questions; it leaves no intermediate state.
///
/// # Errors
/// [`BootstrapError`]; a retry does not help.
pub async fn run(
    identity: &Arc<Identity>,
    plan: &Plan,
    key: &ProofKey,
    mut say: impl FnMut(&str),
) -> Result<Formed, BootstrapError> {
    let mut formation = Formation::new(Arc::clone(identity), plan.clone(), key.clone());
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
                // Nothing is logged in the first second: nodes that start together do not start at
                // exactly the same time.
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

/// Result of one round of questions.
#[derive(Debug)]
enum Step {
    /// Persist this and start.
    Settled(Formed),
    /// The first of two equal rounds; ask again immediately.
    Again,
    Wait(Vec<Waiting>),
    Refused(String),
}

/// The questions of one unformed node.
struct Formation {
    identity: Arc<Identity>,
    plan: Plan,
    key: ProofKey,
    /// The agreement that the last round would have formed.
    seen: Option<Formed>,
}

impl Formation {
    fn new(identity: Arc<Identity>, plan: Plan, key: ProofKey) -> Self {
        Self { identity, plan, key, seen: None }
    }

    /// Asks every peer once.
    async fn round(&mut self) -> Step {
        let answers = ask::ask_all(&self.identity, &self.plan, &self.key).await;
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
