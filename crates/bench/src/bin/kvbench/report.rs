//! What is printed: one table for people, or one object for machines.

use std::collections::BTreeMap;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use super::rounds::{Contender, Plan, Sample};
use super::slice::{Figures, Work};
use super::stats::{Spread, ratios};

/// One figure of a slice: its name in JSON, what people read, how it is read and shown.
struct Measure {
    name: &'static str,
    title: &'static str,
    read: fn(&Figures) -> Option<f64>,
    show: fn(f64) -> String,
}

/// The name of the figure that has no ratio: mostly it is 0.
const FAILED: &str = "failed";

const MEASURES: [Measure; 9] = [
    Measure {
        name: "per_second",
        title: "operations/s",
        read: |figures| Some(figures.per_second),
        show: |value| format!("{value:.0}"),
    },
    Measure { name: "p50_us", title: "p50, ms", read: |figures| Some(figures.p50_us), show: milli },
    Measure { name: "p99_us", title: "p99, ms", read: |figures| Some(figures.p99_us), show: milli },
    Measure {
        name: "server_cpu_us",
        title: "server CPU, µs/op",
        read: |figures| Some(figures.server_cpu_us),
        show: |value| format!("{value:.0}"),
    },
    Measure {
        name: "client_cpu_us",
        title: "client CPU, µs/op",
        read: |figures| Some(figures.client_cpu_us),
        show: |value| format!("{value:.0}"),
    },
    Measure {
        name: "syncs_per_write",
        title: "syncs per write",
        read: |figures| figures.syncs_per_write,
        show: |value| format!("{value:.2}"),
    },
    Measure {
        name: "memory_bytes",
        title: "memory, MiB",
        read: |figures| Some(figures.memory_bytes as f64),
        show: mebibytes,
    },
    Measure {
        name: "disk_bytes",
        title: "disk, MiB",
        read: |figures| Some(figures.disk_bytes as f64),
        show: mebibytes,
    },
    Measure {
        name: FAILED,
        title: "failed",
        read: |figures| Some(figures.failed as f64),
        show: |value| format!("{value:.0}"),
    },
];

fn milli(micros: f64) -> String {
    format!("{:.2}", micros / 1e3)
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.0}", bytes / f64::from(1 << 20))
}

/// What was measured with what; the head of a report.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    /// Processors that this process may use.
    pub(super) processors: usize,
    /// Load average of the last minute, before the first round.
    pub(super) load: f64,
    /// Version of our nodes.
    pub(super) kvnode: String,
    /// Version of etcd; `None` = not measured.
    pub(super) etcd: Option<String>,
    /// Shards of our clusters.
    pub(super) shards: u32,
    /// The store of their logs; `None` = the default.
    pub(super) log_store: Option<String>,
}

/// A report of all rounds.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    machine: &'a Machine,
    plan: &'a Plan,
    /// All slices in the order in which they were measured.
    samples: &'a [Sample],
    medians: Vec<Medians>,
    ratios: Vec<Ratios>,
}

/// Of each figure the median over the rounds.
#[derive(Debug, Serialize)]
struct Medians {
    operation: Work,
    clients: u32,
    contender: Contender,
    #[serde(flatten)]
    figures: BTreeMap<&'static str, Option<f64>>,
}

/// Of each figure the ratio to etcd's of the same round: the median and the quartiles of these.
#[derive(Debug, Serialize)]
struct Ratios {
    operation: Work,
    clients: u32,
    contender: Contender,
    to: Contender,
    #[serde(flatten)]
    figures: BTreeMap<&'static str, Option<Spread>>,
}

impl<'a> Report<'a> {
    /// The report of these slices, of which every round has the same.
    pub(super) fn new(machine: &'a Machine, plan: &'a Plan, samples: &'a [Sample]) -> Report<'a> {
        let first: Vec<&Sample> = samples.iter().filter(|sample| sample.round == 1).collect();
        let of = |sample: &Sample, contender, measure: &Measure| {
            let same = samples.iter().filter(move |other| {
                (other.contender, other.operation, other.clients)
                    == (contender, sample.operation, sample.clients)
            });
            let values = same.map(|other| (other.round, (measure.read)(&other.figures)));
            values.collect::<BTreeMap<u32, Option<f64>>>()
        };
        let medians = first.iter().map(|sample| {
            let median = |measure: &Measure| {
                let rounds = of(sample, sample.contender, measure);
                Spread::of(rounds.into_values().flatten().collect()).map(|spread| spread.median)
            };
            let figures = MEASURES.iter().map(|measure| (measure.name, median(measure)));
            let Sample { operation, clients, contender, .. } = **sample;
            Medians { operation, clients, contender, figures: figures.collect() }
        });
        let ours = first.iter().filter(|sample| sample.contender != Contender::Etcd);
        let ours = ours.filter(|_| machine.etcd.is_some());
        let ratios = ours.map(|sample| {
            let ratio = |measure: &Measure| {
                let mine = of(sample, sample.contender, measure);
                let theirs = of(sample, Contender::Etcd, measure);
                let pair = |(round, mine)| (mine, theirs.get(&round).copied().flatten());
                Spread::of(ratios(mine.into_iter().map(pair)))
            };
            let compared = MEASURES.iter().filter(|measure| measure.name != FAILED);
            let figures = compared.map(|measure| (measure.name, ratio(measure)));
            let Sample { operation, clients, contender, .. } = **sample;
            let (to, figures) = (Contender::Etcd, figures.collect());
            Ratios { operation, clients, contender, to, figures }
        });
        let (medians, ratios) = (medians.collect(), ratios.collect());
        Report { machine, plan, samples, medians, ratios }
    }

    /// The report as one JSON object.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// The report as a table of medians and ratios.
    pub(super) fn table(&self) -> String {
        let columns: Vec<Contender> =
            [Contender::QuorateBare, Contender::QuorateNative, Contender::Etcd]
                .into_iter()
                .filter(|one| self.medians.iter().any(|median| median.contender == *one))
                .collect();
        let compared: Vec<Contender> =
            columns.iter().copied().filter(|one| self.is_compared(*one)).collect();
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let titles = ["operation", "clients", "figure"].map(str::to_owned).into_iter();
        let titles = titles.chain(columns.iter().map(|one| one.name().to_owned()));
        let titles = titles.chain(compared.iter().map(|one| {
            let ours = one.name().trim_start_matches("quorate ");
            format!("{ours} / etcd")
        }));
        table.set_header(titles.map(|title| title.to_uppercase()));
        let mut rows: Vec<(Work, u32)> = Vec::new();
        for median in &self.medians {
            let row = (median.operation, median.clients);
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        for (operation, clients) in rows {
            for measure in &MEASURES {
                let mut cells = vec![
                    Cell::new(operation.name()),
                    Cell::new(clients).set_alignment(CellAlignment::Right),
                    Cell::new(measure.title),
                ];
                let medians: Vec<Option<f64>> = columns
                    .iter()
                    .map(|contender| self.median(*contender, operation, clients, measure.name))
                    .collect();
                // Reads sync nothing, and failures are seldom: such a line would say nothing.
                let none_failed = measure.name == FAILED && medians.iter().all(|m| *m == Some(0.0));
                if none_failed || medians.iter().all(Option::is_none) {
                    continue;
                }
                let medians = medians.into_iter().map(|median| median.map(measure.show));
                let ratios = compared.iter().map(|contender| {
                    self.ratio(*contender, operation, clients, measure.name).map(show_ratio)
                });
                cells.extend(medians.chain(ratios).map(|text| {
                    let text = text.unwrap_or_else(|| "–".to_owned());
                    Cell::new(text).set_alignment(CellAlignment::Right)
                }));
                table.add_row(cells);
            }
        }
        table.trim_fmt()
    }

    fn is_compared(&self, contender: Contender) -> bool {
        self.ratios.iter().any(|ratio| ratio.contender == contender)
    }

    fn median(&self, of: Contender, operation: Work, clients: u32, name: &str) -> Option<f64> {
        let wanted = (of, operation, clients);
        let mut all = self.medians.iter();
        let row = all.find(|one| (one.contender, one.operation, one.clients) == wanted)?;
        row.figures.get(name).copied().flatten()
    }

    fn ratio(&self, of: Contender, operation: Work, clients: u32, name: &str) -> Option<Spread> {
        let wanted = (of, operation, clients);
        let mut all = self.ratios.iter();
        let row = all.find(|one| (one.contender, one.operation, one.clients) == wanted)?;
        row.figures.get(name).copied().flatten()
    }
}

/// A ratio with its quartiles: `0.52 (0.50–0.55)`.
fn show_ratio(spread: Spread) -> String {
    let Spread { median, lower_quartile, upper_quartile } = spread;
    format!("{median:.2} ({lower_quartile:.2}–{upper_quartile:.2})")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::slice::Shape;
    use super::*;

    fn sample(round: u32, contender: Contender, operation: Work, per_second: f64) -> Sample {
        let figures = Figures {
            operations: 10,
            failed: u64::from(round),
            first_failure: None,
            seconds: 1.0,
            per_second,
            p50_us: 1_500.0,
            p99_us: 2_500.0,
            server_cpu_us: 100.0,
            client_cpu_us: 50.0,
            syncs_per_write: (operation != Work::Get).then_some(0.5),
            memory_bytes: 3 << 20,
            disk_bytes: 5 << 20,
        };
        Sample { round, contender, operation, clients: 64, figures }
    }

    fn machine(etcd: Option<&str>) -> Machine {
        Machine {
            processors: 2,
            load: 0.5,
            kvnode: "kvnode 1".to_owned(),
            etcd: etcd.map(str::to_owned),
            shards: 8,
            log_store: None,
        }
    }

    fn plan() -> Plan {
        let (warm_up, duration) = (Duration::from_millis(500), Duration::from_secs(4));
        let shape = Shape { keys: 10, value_size: 256, warm_up, duration };
        Plan { rounds: 3, clients: vec![64], connections: 1, shape }
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (round, ours, theirs) in [(1, 200.0, 100.0), (2, 90.0, 50.0), (3, 180.0, 120.0)] {
            for operation in [Work::Put, Work::Get] {
                samples.push(sample(round, Contender::QuorateBare, operation, ours));
                samples.push(sample(round, Contender::Etcd, operation, theirs));
            }
        }
        samples
    }

    #[test]
    fn the_table_has_medians_and_paired_ratios() {
        let (machine, plan, samples) = (machine(Some("etcd 3")), plan(), samples());
        let table = Report::new(&machine, &plan, &samples).table();
        let lines: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0].join(" "), "OPERATION CLIENTS FIGURE QUORATE BARE ETCD BARE / ETCD");
        // The ratios are 2, 1.8 and 1.5.
        let expected = "put 64 operations/s 180 100 1.80 (1.65–1.90)";
        assert_eq!(lines[1].join(" "), expected);
        assert!(table.contains("p50, ms"), "{table}");
        let syncs: Vec<String> =
            lines.iter().filter(|words| words.contains(&"syncs")).map(|l| l.join(" ")).collect();
        assert_eq!(
            syncs,
            ["put 64 syncs per write 0.50 0.50 1.00 (1.00–1.00)"],
            "reads have no such line"
        );
        assert_eq!(lines[9].join(" "), "put 64 failed 2 2 –");
        assert_eq!(lines.len(), 1 + 2 * MEASURES.len() - 1);
        let mut calm = samples.clone();
        calm.iter_mut().for_each(|sample| sample.figures.failed = 0);
        let table = Report::new(&machine, &plan, &calm).table();
        assert!(!table.contains("failed"), "{table}");
    }

    #[test]
    fn json_has_the_same_and_every_round() {
        let (machine, plan, samples) = (machine(Some("etcd 3")), plan(), samples());
        let text = Report::new(&machine, &plan, &samples).json().unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["plan"]["warm_up"], 0.5);
        assert_eq!(json["samples"].as_array().unwrap().len(), 12);
        assert_eq!(json["samples"][0]["server_cpu_us"], 100.0);
        assert_eq!(json["medians"][0]["contender"], "quorate_bare");
        assert_eq!(json["medians"][0]["per_second"], 180.0);
        assert_eq!(json["ratios"][0]["per_second"]["median"], 1.8);
        assert_eq!(json["ratios"][0]["to"], "etcd");
        assert_eq!(json["ratios"][1]["syncs_per_write"], serde_json::Value::Null);
    }

    #[test]
    fn ours_alone_has_no_ratios() {
        let (machine, plan) = (machine(None), plan());
        let samples: Vec<Sample> =
            samples().into_iter().filter(|one| one.contender != Contender::Etcd).collect();
        let report = Report::new(&machine, &plan, &samples);
        assert!(report.ratios.is_empty());
        let table = report.table();
        assert!(!table.contains("ETCD") && table.contains("QUORATE BARE"), "{table}");
    }
}
