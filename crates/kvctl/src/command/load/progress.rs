//! Progress of a load: on a terminal a line with rate and time left, elsewhere nothing.

use std::io::{self, IsTerminal as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::Failure;
use crate::output::json::Object;
use crate::output::{describe, note};

/// The progress line, if standard error is a terminal.
pub struct Progress {
    bar: Option<ProgressBar>,
    begun: std::time::Instant,
    /// Failures are printed as JSON.
    json: bool,
}

impl Progress {
    /// Starts the progress of a file of `size` bytes, or of unknown size.
    pub fn begin(size: Option<u64>, json: bool) -> Progress {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr());
            let template = match size {
                Some(_) => "{bar:30} {percent:>3}%  {msg}  {eta} left",
                None => "{spinner} {bytes}  {msg}",
            };
            // The templates are constants that parse; the default is only a fallback.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        Progress { bar, begun: std::time::Instant::now(), json }
    }

    /// Progress that prints no line.
    #[cfg(test)]
    pub fn silent() -> Progress {
        Progress { bar: None, begun: std::time::Instant::now(), json: false }
    }

    /// Sets the position up to which the file was read.
    pub fn at(&self, position: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
        }
    }

    /// Sets the number of records that were stored.
    pub fn stored(&self, records: u64) {
        if let Some(bar) = &self.bar {
            let rate = records as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
            let (records, rate) = (describe::count(records), describe::count(rate as u64));
            bar.set_message(format!("{records} records  {rate}/s"));
        }
    }

    /// Prints the failure of the record at `line` above the progress line.
    pub fn failed(&self, line: u64, failure: &Failure) {
        let message = match self.json {
            true => failure.json_of(Object::new().with("line", line), None).to_string(),
            false => format!("line {line}: {failure}"),
        };
        match &self.bar {
            Some(bar) => bar.suspend(|| note(message)),
            None => note(message),
        }
    }

    /// Removes the line.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
