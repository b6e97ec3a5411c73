//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// The pause between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `look` gives a value.
///
/// # Panics
/// If it gives none within `patience`; the sentence says what was waited for.
pub fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < patience, "waited {patience:?} in vain: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Waits until the future that `look` makes gives a value.
///
/// # Panics
/// If none does within `patience`; the sentence says what was waited for.
pub async fn until_async<T, F: Future<Output = Option<T>>>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> F,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < patience, "waited {patience:?} in vain: {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
