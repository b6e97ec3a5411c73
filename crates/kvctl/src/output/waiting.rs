//! Waiting messages: after half a second, a line on the terminal says what the command waits for.

use std::future::Future;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use quorate_bench::Progress;

use super::describe;
use crate::duration;

/// Time before the line appears.
const QUIET_TIME: Duration = Duration::from_millis(500);

/// Awaits `future`; if it takes long, the terminal shows the line `waiting for …` until then.
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
    // The template is a constant that parses; the default is only a fallback.
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

/// Awaits a benchmark; a line on the terminal shows its progress.
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
