//! After half a second of waiting, people on a terminal are told for what.

use std::future::Future;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use quorate_bench::Progress;

use super::describe;
use crate::duration;

/// How long nothing is said.
const QUIET_TIME: Duration = Duration::from_millis(500);

/// The answer of `future`; if it takes long, the line `waiting for …` stands on the terminal until then.
pub async fn notify_if_slow<T>(
    what: impl FnOnce() -> String,
    future: impl Future<Output = T>,
) -> T {
    let mut future = std::pin::pin!(future);
    if !io::stderr().is_terminal() {
        return future.await;
    }
    tokio::select! {
        biased;
        done = &mut future => return done,
        () = tokio::time::sleep(QUIET_TIME) => {}
    }
    let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // The template is a constant that parses; a plain spinner would do as well.
    line.set_style(
        ProgressStyle::with_template("waiting for {msg} … {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    line.set_message(what());
    line.enable_steady_tick(Duration::from_millis(200));
    let done = future.await;
    line.finish_and_clear();
    done
}

/// The outcome of a benchmark, with a line on the terminal that says how far it is.
pub async fn show_progress<T>(
    progress: &Progress,
    measured: Duration,
    future: impl Future<Output = T>,
) -> T {
    let mut future = std::pin::pin!(future);
    if !io::stderr().is_terminal() {
        return future.await;
    }
    let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{msg}") {
        line.set_style(style);
    }
    let mut begun: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            done = &mut future => {
                line.finish_and_clear();
                return done;
            }
            () = tokio::time::sleep(Duration::from_millis(250)) => {}
        }
        line.set_message(match progress.measuring() {
            false => format!("storing the keys: {}", describe::count(progress.prepared())),
            true => {
                let left =
                    measured.saturating_sub(begun.get_or_insert_with(Instant::now).elapsed());
                let done = describe::count(progress.done());
                format!("{done} operations, {} left", duration::show_rough(left))
            }
        });
    }
}
