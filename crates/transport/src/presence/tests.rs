//! A report is never proof: what it may do, and what only the process itself can do.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::memory::{Memories, MemoryStore, Recollection};

const NODE: Incarnation = Incarnation(7);
const REPORTER: NodeId = NodeId(2);

struct Nowhere;

impl MemoryStore for Nowhere {
    fn keep(&self, _memories: &Memories) {}
}

/// A process as it describes itself, and when it began.
#[derive(Clone, Copy)]
struct Proc {
    said: Remembered,
    began: Instant,
}

fn said(boot_counter: u64, start: u64, log_sequence: u64) -> Remembered {
    Remembered { boot_counter, start: StartId(start), log_sequence }
}

/// Node 3, as node 1 knows it.
struct Scene {
    presence: watch::Sender<Presence>,
    memory: Arc<Memory>,
    now: Instant,
}

impl Scene {
    fn new() -> Self {
        let store: Arc<dyn MemoryStore> = Arc::new(Nowhere);
        let recollection = Recollection { memories: Memories::default(), store };
        let memory = Memory::start(recollection).unwrap();
        Self { presence: Presence::new(NODE, "three:1", &memory), memory, now: Instant::now() }
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    /// A process that begins now.
    fn process(&self, boot_counter: u64, start: u64, log_sequence: u64) -> Proc {
        Proc { said: said(boot_counter, start, log_sequence), began: self.now }
    }

    fn offer(&self, process: Proc, in_place: bool) -> Verdict {
        let Remembered { boot_counter, start, log_sequence } = process.said;
        let uptime = self.now - process.began;
        let hello = PeerHello {
            node: NodeId(3),
            incarnation: NODE,
            boot_counter,
            start,
            log_sequence,
            uptime,
            map_epoch: 0,
            wire_versions: (1, 1),
            feature_version: 1,
            build: String::new(),
            peer_address: String::new(),
            client_address: String::new(),
            labels: BTreeMap::new(),
        };
        let mut verdict = None;
        self.presence.send_modify(|presence| {
            verdict = Some(presence.offer(&hello, in_place, &self.memory, uptime, self.now));
        });
        verdict.unwrap()
    }

    fn accept(&self, process: Proc) {
        assert!(matches!(self.offer(process, true), Verdict::Accepted), "{:?}", process.said);
    }

    /// The reporter lists this process, which it accepted when it began.
    fn report(&self, process: Proc) {
        let accepted = Some(Since::of(self.now - process.began, self.now));
        let (start, address) = (process.said.start, "three:1".to_owned());
        self.list(Some(Report {
            by: REPORTER,
            came: self.now,
            process: Process { incarnation: NODE, start, address, accepted },
            said: process.said,
        }));
    }

    fn list(&self, report: Option<Report>) {
        self.presence.send_modify(|presence| {
            presence.reported(REPORTER, report, self.now);
        });
    }

    fn end(&self) {
        self.presence.send_modify(|presence| assert!(presence.ended()));
    }

    fn is_dropped(&self, process: Proc) -> bool {
        self.presence.borrow().dropped(process.said.start).is_some()
    }

    fn remembered(&self) -> Remembered {
        self.memory.of(NODE).unwrap()
    }

    /// The first process, and the one after it, which has promised more and is connected.
    fn restarted() -> (Self, Proc, Proc) {
        let mut scene = Self::new();
        let first = scene.process(1, 1, 50);
        scene.accept(first);
        scene.pass(10_000);
        scene.end();
        scene.pass(500);
        let next = scene.process(2, 2, 60);
        scene.accept(next);
        (scene, first, next)
    }
}

#[test]
fn a_late_report_of_the_process_before_ends_no_connection_of_the_next() {
    let (mut scene, first, next) = Scene::restarted();
    scene.pass(1_000);
    scene.report(first);
    assert!(!scene.is_dropped(next));
    assert_eq!(scene.remembered(), next.said);
    scene.list(None);
    scene.end();
    scene.accept(next);
}

#[test]
fn a_wrong_report_erases_nothing_that_is_remembered() {
    let (mut scene, first, next) = Scene::restarted();
    scene.pass(60_000);
    scene.report(first);
    assert!(scene.is_dropped(next));
    scene.end();
    assert_eq!(scene.remembered(), next.said, "its numbers stay");
    let older = scene.process(2, 9, 55);
    assert!(matches!(scene.offer(older, true), Verdict::WentBack(_)), "it has promised more");
    assert!(matches!(scene.offer(next, true), Verdict::Elsewhere(..)));
    scene.list(None);
    assert!(matches!(scene.offer(older, true), Verdict::WentBack(_)), "it has promised more");
    // It is the process that was accepted last, and waits for no look at another place.
    assert!(matches!(scene.offer(next, false), Verdict::Accepted));
}

#[test]
fn an_older_copy_that_was_accepted_elsewhere_does_not_count() {
    let mut scene = Scene::new();
    let first = scene.process(5, 1, 50);
    scene.accept(first);
    // The reporter remembers nothing, and takes it at its word.
    let older = scene.process(3, 9, 40);
    scene.pass(60_000);
    scene.end();
    let next = scene.process(6, 2, 60);
    scene.accept(next);
    scene.pass(60_000);
    scene.report(older);
    assert!(!scene.is_dropped(next));
    assert!(!matches!(scene.offer(older, true), Verdict::Accepted));
    assert_eq!(scene.remembered(), next.said);
}

#[test]
fn an_original_is_held_to_its_own_numbers_once_it_is_found_in_its_place() {
    let (mut scene, original, copy) = Scene::restarted();
    scene.pass(60_000);
    let waits = |verdict| matches!(verdict, Verdict::Another(_) | Verdict::Undecided(_));
    // Without a report it may be an older copy that never was accepted anywhere.
    assert!(waits(scene.offer(original, true)));
    scene.report(original);
    assert!(waits(scene.offer(original, true)), "its copy is connected");
    scene.end();
    assert_eq!(scene.remembered(), copy.said);
    assert!(waits(scene.offer(original, false)), "its Hello may be old");
    assert_eq!(scene.remembered(), copy.said);
    scene.accept(original);
    assert_eq!(scene.remembered(), original.said);
    assert!(matches!(scene.offer(copy, true), Verdict::Another(_)));
}
