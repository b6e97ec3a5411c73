//! Which connections stay, yield or are asked to close, in virtual time and without sockets.

use super::*;

const IDLE: Duration = Duration::from_secs(100);
const AGE: Duration = Duration::from_secs(1000);

fn places(clients: usize) -> (Arc<Places>, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let limits = Limits { clients, idle: IDLE, age: AGE, patience: FIRST_REQUEST_TIMEOUT };
    (Arc::new(Places::new(limits, metrics.clone())), metrics)
}

/// A connection after its first request.
fn asked(places: &Arc<Places>, caller: Caller) -> Arc<Place> {
    let place = places.enter();
    let call = place.begin();
    place.take(caller).unwrap();
    drop(call);
    place
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn the_client_that_was_idle_for_longest_yields_and_one_with_a_call_in_flight_does_not() {
    let (places, metrics) = places(3);
    let busy = asked(&places, Caller::Client);
    let call = busy.begin();
    pass(Duration::from_secs(1)).await;
    let first = asked(&places, Caller::Client);
    pass(Duration::from_secs(1)).await;
    let second = asked(&places, Caller::Client);
    pass(Duration::from_secs(1)).await;
    // Now the second one was idle for longer.
    drop(first.begin());
    let third = asked(&places, Caller::Client);
    assert!(second.leaving().is_cancelled());
    assert!([&busy, &first, &third].iter().all(|place| !place.leaving().is_cancelled()));
    assert_eq!(metrics.connections_closed("yielded").get(), 1);
    assert_eq!(metrics.node.connections_refused.get(), 0);

    let calls = [first.begin(), third.begin()];
    let refused = places.enter().take(Caller::Client).unwrap_err();
    assert_eq!(
        refused,
        "this node already serves 3 client connections, and none is idle; the limit is \
         --max-connections"
    );
    assert!(places.enter().take(Caller::Probe).is_ok() && asked(&places, Caller::Peer).id > 0);
    drop((call, calls));
    // A free place is used before a client has to yield.
    busy.leave();
    asked(&places, Caller::Client);
    assert_eq!(metrics.connections_closed("yielded").get(), 1);
}

#[tokio::test(start_paused = true)]
async fn connections_that_have_yielded_and_do_not_close_are_few_and_closed_soon() {
    let (places, metrics) = places(1);
    let stubborn: Vec<_> = (0..=YIELDED_MAX).map(|_| asked(&places, Caller::Client)).collect();
    assert_eq!(metrics.connections_closed("yielded").get(), YIELDED_MAX);
    assert!(places.enter().take(Caller::Client).is_err(), "no more may yield");
    let begun = Instant::now();
    stubborn[0].until_overdue().await;
    assert_eq!(begun.elapsed(), YIELD_TIMEOUT);
    stubborn[0].leave();
    assert!(places.enter().take(Caller::Client).is_ok());

    // A call that began before the client received the request to close may end.
    let _call = stubborn[1].begin();
    let begun = Instant::now();
    stubborn[1].until_overdue().await;
    assert_eq!(begun.elapsed(), YIELD_TIMEOUT + LEAVE_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_is_asked_to_close_and_a_call_keeps_it() {
    let (places, metrics) = places(9);
    let place = asked(&places, Caller::Client);
    let begun = Instant::now();
    place.until_leaving().await;
    let range = IDLE.mul_f64(1.0 - JITTER)..=IDLE.mul_f64(1.0 + JITTER) + Duration::from_millis(1);
    assert!(range.contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(metrics.connections_closed("idle").get(), 1);

    let place = asked(&places, Caller::Client);
    let call = place.begin();
    let mut leaving = Box::pin(place.until_leaving());
    assert!(tokio::time::timeout(IDLE * 5, &mut leaving).await.is_err(), "a call is in flight");
    drop(call);
    let begun = Instant::now();
    leaving.await;
    assert!(range.contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_old_client_is_asked_to_close_at_an_age_of_its_own() {
    let (places, metrics) = places(99);
    let range = AGE.mul_f64(1.0 - JITTER)..=AGE.mul_f64(1.0 + JITTER) + Duration::from_millis(1);
    let begun = Instant::now();
    let clients: Vec<_> = (0..20).map(|_| asked(&places, Caller::Client)).collect();
    let _calls: Vec<_> = clients.iter().map(|place| place.begin()).collect();
    let ages = clients.iter().map(|place| async {
        place.until_leaving().await;
        begun.elapsed()
    });
    let mut ages = futures::future::join_all(ages).await;
    assert!(ages.iter().all(|age| range.contains(age)), "{ages:?}");
    ages.sort();
    ages.dedup();
    assert!(ages.len() > 10, "they do not reconnect together: {ages:?}");
    assert_eq!(metrics.connections_closed("aged").get(), 20);
}

#[tokio::test(start_paused = true)]
async fn peers_stay_and_ended_connections_are_not_waited_for() {
    let (places, metrics) = places(9);
    let peer = asked(&places, Caller::Peer);
    let mut leaving = Box::pin(peer.until_leaving());
    assert!(tokio::time::timeout(AGE * 5, &mut leaving).await.is_err());
    peer.leave();
    leaving.await;
    let client = asked(&places, Caller::Client);
    client.leave();
    client.until_leaving().await;
    for cause in ["idle", "aged", "yielded"] {
        assert_eq!(metrics.connections_closed(cause).get(), 0, "{cause}");
    }
    assert_eq!(metrics.node.connections.get(), 0);
}
