//! How far a load is: on a terminal a line with rate and time left, elsewhere nothing.

use std::io::{self, IsTerminal as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::Failure;
use crate::output::json::Object;
use crate::output::{describe, note};

/// The line, where there is one.
pub struct Progress {
    bar: Option<ProgressBar>,
    begun: std::time::Instant,
    /// Failures are told as JSON.
    json: bool,
}

impl Progress {
    /// For a file of `size` bytes, or of unknown size.
    pub fn begin(size: Option<u64>, json: bool) -> Progress {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr());
            let template = match size {
                Some(_) => "{bar:30} {percent:>3}%  {msg}  {eta} left",
                None => "{spinner} {bytes}  {msg}",
            };
            // The templates are constants that parse; a plain line would do as well.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        Progress { bar, begun: std::time::Instant::now(), json }
    }

    /// Without a line.
    #[cfg(test)]
    pub fn silent() -> Progress {
        Progress { bar: None, begun: std::time::Instant::now(), json: false }
    }

    /// The file was read up to here.
    pub fn at(&self, position: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
        }
    }

    /// So many records were stored.
    pub fn stored(&self, records: u64) {
        if let Some(bar) = &self.bar {
            let rate = records as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
            let (records, rate) = (describe::count(records), describe::count(rate as u64));
            bar.set_message(format!("{records} records  {rate}/s"));
        }
    }

    /// Tells the failure of the record on a line, above the progress.
    pub fn failed(&self, line: u64, failure: &Failure) {
        let told = match self.json {
            true => failure.json_of(Object::new().with("line", line), None).to_string(),
            false => format!("line {line}: {failure}"),
        };
        match &self.bar {
            Some(bar) => bar.suspend(|| note(told)),
            None => note(told),
        }
    }

    /// Takes the line away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
