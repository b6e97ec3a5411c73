use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// Standard error with a reader that reads when it is allowed to.
struct Slow {
    began: Sender<()>,
    allowed: Receiver<()>,
    read: Arc<Mutex<Vec<u8>>>,
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.began.send(()).unwrap();
        if self.allowed.recv().is_err() {
            // The test has ended.
            loop {
                std::thread::park();
            }
        }
        self.read.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Bench {
    queue: Arc<Queue>,
    began: Receiver<()>,
    allow: Sender<()>,
    read: Arc<Mutex<Vec<u8>>>,
    lost: Counter,
}

/// A queue of 20 bytes, whose thread writes `lost N` where lines were lost.
fn bench() -> Bench {
    let lost = Counter::default();
    let queue = Arc::new(Queue::new(20, lost.clone()));
    let (begins, began) = channel();
    let (allow, allowed) = channel();
    let read = Arc::new(Mutex::new(Vec::new()));
    let mut out = Slow { began: begins, allowed, read: read.clone() };
    let writes = queue.clone();
    std::thread::spawn(move || {
        writes.write_to(&mut out, SOON, |lost| {
            if lost > 0 {
                writes.push(format!("lost {lost}\n").as_bytes(), 20);
            }
        })
    });
    Bench { queue, began, allow, read, lost }
}

#[test]
fn a_reader_that_stands_still_holds_no_one_up_and_later_reads_what_was_lost() {
    let bench = bench();
    bench.queue.push(b"first\n", 20);
    bench.began.recv_timeout(SOON).unwrap();
    // Nothing is read from here on; each of these returns immediately.
    bench.queue.push(b"0123456789\n", 20);
    bench.queue.push(b"0123456789\n", 20);
    bench.queue.push(b"abcdefghij\n", 20);
    bench.queue.push(b"the end\n", 30);
    assert_eq!(bench.lost.get(), 2);
    assert!(!bench.queue.flush(Duration::from_millis(50)), "a flush gives up");
    for _ in 0..3 {
        bench.allow.send(()).unwrap();
    }
    assert!(bench.queue.flush(SOON));
    bench.began.recv_timeout(SOON).unwrap();
    bench.began.recv_timeout(SOON).unwrap();
    assert!(bench.queue.flush(SOON));
    let read = String::from_utf8(bench.read.lock().clone()).unwrap();
    assert_eq!(read, "first\n0123456789\nthe end\nlost 2\n");
}

#[test]
fn a_reader_that_is_gone_is_no_reason_to_end() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let queue = Arc::new(Queue::new(20, Counter::default()));
    let writes = queue.clone();
    std::thread::spawn(move || writes.write_to(&mut Gone, SOON, |_| {}));
    for _ in 0..2 {
        queue.push(b"a line\n", 20);
        assert!(queue.flush(SOON));
    }
}
