//! The log: text on a terminal, one JSON object per line otherwise, always on stderr. How lines get
//! there, and which of them do not, is in [`quorate_node::log`].

use std::io::IsTerminal;

use quorate_config::{Key, LogFilter, LogFormat};
use quorate_node::log::{self, Writer};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Whether text written to this stream may have colours.
pub fn has_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Starts the log.
///
/// # Errors
/// The filter cannot be read, or a log was already started.
pub fn init(filter: &LogFilter, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter.as_str()).map_err(|error| {
        let key = Key::LogLevel;
        format!("{key} is {:?}, but {error} (--{key} or {})", filter.as_str(), key.env())
    })?;
    let stderr = std::io::stderr();
    let text = match format {
        LogFormat::Auto => stderr.is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Writers);
    let started = if text {
        let builder = builder.with_ansi(has_colour(&stderr)).with_target(false);
        builder.finish().with(Limit).try_init()
    } else {
        let builder = builder.json().flatten_event(true);
        let builder = builder.with_current_span(true).with_span_list(false);
        builder.finish().with(Limit).try_init()
    };
    started.map_err(|error| format!("the log cannot be started: {error}"))
}

struct Writers;

impl<'a> MakeWriter<'a> for Writers {
    type Writer = Writer;

    fn make_writer(&'a self) -> Writer {
        Writer::of(Level::INFO)
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Writer {
        Writer::of(*metadata.level())
    }
}

/// Leaves out lines that repeat.
struct Limit;

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        log::admits(event)
    }
}
