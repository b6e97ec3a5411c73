//! More load than the nodes can do: they do what they can and refuse the rest, truthfully.

use std::time::Duration;

use quorate_tests::{Cluster, ClusterOptions};
use serde_json::Value;

/// The time of each part. Short, because it is one of many tests; `tests/README.md` has the command
/// for the three minutes.
const PART: Duration = Duration::from_secs(4);

/// Runs `kvctl bench put` with these arguments; its report.
fn bench(cluster: &Cluster, arguments: &[&str]) -> Value {
    let duration = format!("{}s", PART.as_secs());
    let usual = ["--timeout", "10s", "-o", "json", "bench", "put", "--duration", &duration];
    let output = cluster.kvctl(&[&usual[..], arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn number(report: &Value, name: &str) -> f64 {
    report[name].as_f64().unwrap_or_else(|| panic!("no {name} in {report}"))
}

/// The requests that the nodes refused to protect themselves, and the answers to puts.
fn counted(cluster: &Cluster) -> (f64, f64) {
    let ids = cluster.ids().into_iter();
    let each = ids.map(|id| {
        let page = cluster.page(id, "/metrics").1;
        let sum = |beginning: &str| -> f64 {
            let lines = page.lines().filter(|line| line.starts_with(beginning));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        (sum("quorate_shed_total"), sum("quorate_requests_total{method=\"Put\""))
    });
    each.fold((0.0, 0.0), |(shed, puts), (more, others)| (shed + more, puts + others))
}

/// An open loop at three times what a closed loop reaches. Without shedding everything is done
/// late, for callers who have left, and with retries several times.
#[tokio::test(flavor = "multi_thread")]
async fn at_three_times_the_load_half_of_the_peak_is_reached_and_no_outcome_is_lost() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let peak = number(&bench(&cluster, &["--clients", "256"]), "per_second");
    let rate = format!("{}", (3.0 * peak) as u64);
    let (shed_before, puts_before) = counted(&cluster);
    // What may be in flight is bounded, so that the program which makes the load is not the one
    // that is overloaded.
    let report = bench(&cluster, &["--rate", &rate, "--connections", "16", "--in-flight", "6000"]);
    let (shed, puts) = counted(&cluster);
    let (shed, puts) = (shed - shed_before, puts - puts_before);

    let calls = number(&report, "count") + number(&report, "failed") + number(&report, "late");
    let goodput = number(&report, "per_second");
    let said = format!("peak {peak:.0}/s, {calls} calls, shed {shed}, {puts} answers: {report}");
    assert!(shed > 0.0, "{said}");
    assert_eq!(number(&report, "unknown"), 0.0, "{said}");
    assert!(goodput >= peak / 2.0, "{said}");
    assert!(puts <= 1.5 * calls, "{said}");
    // What was refused was refused for the load.
    let failures = report["failures"].as_object().expect("an object");
    assert!(failures.keys().all(|reason| reason == "OVERLOADED"), "{said}");
}
