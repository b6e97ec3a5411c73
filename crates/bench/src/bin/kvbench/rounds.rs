//! The plan of rounds: who is visited when, and what a visit consists of.
//!
//! In each round every contender is visited once, and every second round goes the other way round
//! (A B C, C B A, A B C): what changes on the machine over minutes meets all alike. A visit starts
//! an empty cluster, stores all keys, and then measures; so every visit finds the same state.

use quorate_client::{Client, ClientConfig};
use serde::Serialize;
use tonic::transport::{Channel, Endpoint};

use super::cluster::{Cluster, Kind, Setup};
use super::fatal::Fatal;
use super::slice::{self, Figures, Shape, Slice, Work};
use super::store::{Bare, Etcd, Native, Store};

/// Clients that store the keys; more than is measured with little, so that it is done soon.
const LOAD_CLIENTS: u32 = 64;

/// What is compared: a store and the way to reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Contender {
    /// Our nodes by bare unary calls.
    QuorateBare,
    /// Our nodes by the native client.
    QuorateNative,
    /// etcd by the same bare unary calls.
    Etcd,
}

impl Contender {
    /// The name that people read.
    pub(super) fn name(self) -> &'static str {
        match self {
            Contender::QuorateBare => "quorate bare",
            Contender::QuorateNative => "quorate native",
            Contender::Etcd => "etcd",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Contender::QuorateBare | Contender::QuorateNative => Kind::Quorate,
            Contender::Etcd => Kind::Etcd,
        }
    }
}

/// What a run does.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Plan {
    /// How often every contender is visited.
    pub(super) rounds: u32,
    /// The numbers of clients, each a slice of its own.
    pub(super) clients: Vec<u32>,
    /// Connections to each node.
    pub(super) connections: u32,
    /// What the slices have in common.
    #[serde(flatten)]
    pub(super) shape: Shape,
}

/// The figures of one slice, and which one it was.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    /// The round, from 1.
    pub(super) round: u32,
    /// Who was measured.
    pub(super) contender: Contender,
    /// What was done.
    pub(super) operation: Work,
    /// By how many clients.
    pub(super) clients: u32,
    /// What was measured.
    #[serde(flatten)]
    pub(super) figures: Figures,
}

/// A number with its noun.
pub(super) fn plural(count: u32, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Who is visited in a round, in order.
fn order(round: u32, with_etcd: bool) -> Vec<Contender> {
    let mut all = vec![Contender::QuorateBare, Contender::Etcd, Contender::QuorateNative];
    all.retain(|contender| with_etcd || *contender != Contender::Etcd);
    if round.is_multiple_of(2) {
        all.reverse();
    }
    all
}

/// The slices of a visit, in order.
fn slices(clients: &[u32]) -> Vec<(Work, u32)> {
    let all = |work| clients.iter().map(move |clients| (work, *clients));
    [(Work::Load, LOAD_CLIENTS)].into_iter().chain(all(Work::Put)).chain(all(Work::Get)).collect()
}

/// Carries out the whole plan; progress goes to standard error.
///
/// # Errors
/// A cluster does not start or a slice has no figures: half a comparison is none.
pub(super) async fn run(plan: &Plan, setup: &Setup) -> Result<Vec<Sample>, Fatal> {
    let mut samples = Vec::new();
    for round in 1..=plan.rounds {
        for contender in order(round, setup.etcd.is_some()) {
            eprintln!("round {round} of {}: {}: starting", plan.rounds, contender.name());
            let cluster = Cluster::start(contender.kind(), setup).await?;
            let of = Visit { plan, round, contender, cluster };
            let channels = connect(&of.cluster.endpoints(), plan.connections).await?;
            match contender {
                Contender::QuorateBare => of.run(Bare::new(channels), &mut samples).await?,
                Contender::Etcd => of.run(Etcd::new(channels), &mut samples).await?,
                Contender::QuorateNative => {
                    let clients = native(&of.cluster.endpoints(), plan.connections)?;
                    of.run(Native::new(clients), &mut samples).await?;
                }
            }
        }
    }
    Ok(samples)
}

/// One visit of a contender. The cluster ends with it.
struct Visit<'a> {
    plan: &'a Plan,
    round: u32,
    contender: Contender,
    cluster: Cluster,
}

impl Visit<'_> {
    async fn run<S: Store>(mut self, store: S, samples: &mut Vec<Sample>) -> Result<(), Fatal> {
        for (operation, clients) in slices(&self.plan.clients) {
            let (round, contender) = (self.round, self.contender);
            let load = plural(clients, "client");
            let name = format!("{}: {}, {load}", contender.name(), operation.name());
            // No two slices of a run have a number in common, so no value is written twice.
            let slice = Slice { work: operation, clients, name, number: samples.len() as u64 };
            let name = slice.name.clone();
            let figures = slice::run(&store, &mut self.cluster, &self.plan.shape, slice).await?;
            let rounds = self.plan.rounds;
            eprintln!("round {round} of {rounds}: {name}: {:.0} per second", figures.per_second);
            samples.push(Sample { round, contender, operation, clients, figures });
        }
        Ok(())
    }
}

/// Connections to the nodes, node by node in turn.
async fn connect(endpoints: &[String], each: u32) -> Result<Vec<Channel>, Fatal> {
    let mut channels = Vec::new();
    for _ in 0..each {
        for address in endpoints {
            let cannot = |error: tonic::transport::Error| {
                Fatal::machine(format!("cannot connect to {address}"))(std::io::Error::other(error))
            };
            let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(cannot)?;
            channels.push(endpoint.connect().await.map_err(cannot)?);
        }
    }
    Ok(channels)
}

/// Native clients, each with a connection to every node.
fn native(endpoints: &[String], each: u32) -> Result<Vec<Client>, Fatal> {
    let config = ClientConfig::new(endpoints);
    let config = config.map_err(|error| Fatal::Usage(error.to_string()))?;
    Ok((0..each).map(|_| Client::new(config.clone())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_alternate() {
        use Contender::{Etcd, QuorateBare as Bare, QuorateNative as Native};
        assert_eq!(order(1, true), [Bare, Etcd, Native]);
        assert_eq!(order(2, true), [Native, Etcd, Bare]);
        assert_eq!(order(3, true), [Bare, Etcd, Native]);
        assert_eq!(order(1, false), [Bare, Native]);
        assert_eq!(order(2, false), [Native, Bare]);
    }

    #[test]
    fn a_visit_writes_all_keys_before_it_reads() {
        let put = |clients| (Work::Put, clients);
        let get = |clients| (Work::Get, clients);
        assert_eq!(slices(&[1, 64]), [(Work::Load, 64), put(1), put(64), get(1), get(64)]);
    }
}
