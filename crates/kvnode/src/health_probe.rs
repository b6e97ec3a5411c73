//! `kvnode health`: asks a node, over the standard gRPC health service, whether it is well.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use quorate_config::HostPort;
use quorate_proto::health::{LIVE_SERVICE, READY_SERVICE};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Does the node take requests?
    Ready,
    /// Do its threads move?
    Live,
}

impl Question {
    const fn service(self) -> &'static str {
        match self {
            Self::Ready => READY_SERVICE,
            Self::Live => LIVE_SERVICE,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Live => "live",
        }
    }
}

/// How a node that listens at `listen` is reached from its own machine.
#[must_use]
pub fn reachable(listen: SocketAddr) -> HostPort {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(ip, listen.port()).into()
}

/// Asks the node at `endpoint`. Both results are a sentence; an error is any other answer than yes.
///
/// # Errors
/// The node is not well, does not know, or could not be asked in time.
pub fn ask(endpoint: &HostPort, question: Question, timeout: Duration) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let word = question.word();
    let answer =
        runtime.block_on(async { tokio::time::timeout(timeout, check(endpoint, question)).await });
    match answer {
        Ok(Ok(ServingStatus::Serving)) => Ok(format!("{word}: {endpoint}")),
        Ok(Ok(_)) => Err(format!("not {word}: {endpoint} says so itself")),
        Ok(Err(reason)) => Err(format!("not {word}: {endpoint}: {reason}")),
        Err(_) => Err(format!("not {word}: {endpoint} gave no answer in {timeout:?}")),
    }
}

async fn check(endpoint: &HostPort, question: Question) -> Result<ServingStatus, String> {
    let channel = Endpoint::from_shared(format!("http://{endpoint}"))
        .map_err(|error| error.to_string())?
        .connect()
        .await
        .map_err(|error| format!("cannot connect: {}", innermost(&error)))?;
    let request = HealthCheckRequest { service: question.service().to_owned() };
    match HealthClient::new(channel).check(request).await {
        Ok(response) => Ok(response.into_inner().status()),
        // The transport failed after the connection stood, or something else than a node answered.
        Err(status)
            if std::error::Error::source(&status).is_some()
                || status.code() == tonic::Code::Unimplemented =>
        {
            let why = match std::error::Error::source(&status) {
                Some(source) => innermost(source),
                None => status.message().to_owned(),
            };
            Err(format!("what answers there is not a node's client port (--listen): {why}"))
        }
        Err(status) => Err(status.message().to_owned()),
    }
}

/// The cause at the bottom, which is the one that says something ("Connection refused").
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn an_unspecified_address_is_reached_over_loopback() {
        let reach = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reach("0.0.0.0:7401"), "127.0.0.1:7401");
        assert_eq!(reach("[::]:7401"), "[::1]:7401");
        assert_eq!(reach("10.1.2.3:7401"), "10.1.2.3:7401");
    }

    #[test]
    fn each_question_is_answered_by_its_own_service() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = HostPort::from(listener.local_addr().unwrap());
        let (reporter, service) = tonic_health::server::health_reporter();
        runtime.block_on(async {
            reporter
                .set_service_status(READY_SERVICE, tonic_health::ServingStatus::NotServing)
                .await;
            reporter.set_service_status(LIVE_SERVICE, tonic_health::ServingStatus::Serving).await;
        });
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let ready = ask(&endpoint, Question::Ready, TIMEOUT);
        assert_eq!(ready, Err(format!("not ready: {endpoint} says so itself")));
        assert_eq!(ask(&endpoint, Question::Live, TIMEOUT), Ok(format!("live: {endpoint}")));
    }

    #[test]
    fn a_port_that_is_not_the_clients_is_said_to_be_none() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = HostPort::from(listener.local_addr().unwrap());
        let metrics = std::sync::Arc::new(quorate_node::Metrics::new());
        let health =
            quorate_service::health::Health::new(quorate_service::shared::SharedCell::default());
        runtime.spawn(quorate_node::serve_metrics(
            listener,
            metrics,
            std::sync::Arc::new(health),
            std::future::pending(),
        ));
        let answer = ask(&endpoint, Question::Ready, TIMEOUT).unwrap_err();
        let sentence = format!(
            "not ready: {endpoint}: what answers there is not a node's client port (--listen)"
        );
        assert!(answer.starts_with(&sentence), "{answer}");
    }

    #[test]
    fn a_node_that_is_not_there_is_a_sentence() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = HostPort::from(listener.local_addr().unwrap());
        // It accepts nothing and says nothing, so the question runs into its timeout.
        let silent = ask(&endpoint, Question::Ready, Duration::from_millis(50));
        assert_eq!(silent, Err(format!("not ready: {endpoint} gave no answer in 50ms")));
        drop(listener);
        let gone = ask(&endpoint, Question::Ready, TIMEOUT).unwrap_err();
        assert!(gone.contains("cannot connect: Connection refused"), "{gone}");
    }
}
