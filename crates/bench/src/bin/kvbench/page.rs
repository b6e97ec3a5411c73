//! Pages over HTTP: readiness and metrics.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A page on this machine is there within this time, under any load.
const PATIENCE: Duration = Duration::from_secs(10);

/// A longer page is cut: what a server could make this process hold is bounded.
const LONGEST: u64 = 8 << 20;

/// The body of the page at `path` of `host:port`.
///
/// HTTP/1.0 is enough: the answer comes in one piece, and the connection ends with it.
///
/// # Errors
/// The server is not reached, answers with another status than 200, or takes longer than 10 s.
pub(super) async fn get(address: &str, path: &str) -> io::Result<String> {
    let fetch = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(LONGEST).read_to_end(&mut answer).await?;
        body(&String::from_utf8_lossy(&answer))
    };
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {PATIENCE:?}"));
    timeout(PATIENCE, fetch).await.unwrap_or_else(|_| Err(late()))
}

/// The body of an answer with status 200.
fn body(answer: &str) -> io::Result<String> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => {
            let line = head.lines().next().unwrap_or_default();
            Err(io::Error::other(format!("the answer is `{line}`")))
        }
    }
}

/// The sum over all labels of a metric in Prometheus' text format; `None` if it is not there.
pub(super) fn metric(page: &str, name: &str) -> Option<f64> {
    let mut sum = None;
    for line in page.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        let value = match rest.strip_prefix('{') {
            // A label's value may hold a brace; the number comes behind the last one.
            Some(labels) => labels.rsplit_once('}').map(|(_, value)| value),
            None => rest.strip_prefix(' '),
        };
        // A time stamp may stand behind the value.
        let number = value.and_then(|value| value.split_whitespace().next()?.parse::<f64>().ok());
        if let Some(number) = number {
            *sum.get_or_insert(0.0) += number;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP etcd_syncs_count etcd_syncs_count 9\n\
        # TYPE etcd_syncs_count histogram\n\
        etcd_syncs_count 12\n\
        etcd_syncs_count_total 100\n\
        etcd_syncs_counter{a=\"b\"} 100\n\
        etcd_syncs_count2 100\n\
        other{le=\"0.1\",path=\"/x{y} z\"} 3 1700000000000\n\
        other{le=\"+Inf\"} 4e1\n\
        odd many\n";

    #[test]
    fn a_metric_is_found_by_its_whole_name_and_summed() {
        assert_eq!(metric(PAGE, "etcd_syncs_count"), Some(12.0));
        assert_eq!(metric(PAGE, "other"), Some(43.0));
        for absent in ["etcd_syncs", "syncs_count", "odd", "none"] {
            assert_eq!(metric(PAGE, absent), None, "{absent}");
        }
    }

    #[test]
    fn only_a_status_of_200_has_a_body() {
        assert_eq!(
            body("HTTP/1.0 200 OK\r\nA: b\r\n\r\nall\r\n\r\nof it").unwrap(),
            "all\r\n\r\nof it"
        );
        let error = body("HTTP/1.0 503 Service Unavailable\r\n\r\nno").unwrap_err();
        assert_eq!(error.to_string(), "the answer is `HTTP/1.0 503 Service Unavailable`");
        assert!(body("").is_err());
    }
}
