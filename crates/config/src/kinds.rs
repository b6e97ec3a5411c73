//! Types of values: how each is parsed, written, and named in the help.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use quorate_raft::NodeId;

use super::log::{LogFilter, LogFormat};
use super::memory::MemoryPlan;
use super::value::{self, FilePath, HostPort, LogStore, Size};

/// A type of values. What it writes can be parsed again.
pub trait Value: Sized {
    /// The word for a value in the help.
    const NAME: &'static str;
    /// The value of a flag without one; `None` if the flag needs a value.
    const BARE: Option<&'static str> = None;

    /// Parses a value.
    ///
    /// # Errors
    /// A sentence that says what was expected.
    fn parse(text: &str) -> Result<Self, String>;

    /// The value as on the command line; empty if there is none.
    fn written(&self) -> String;
}

/// Implements [`Value`] with a function that parses and a function that writes.
macro_rules! values {
    ($($type:ty, $name:literal, $parse:expr, $written:expr;)+) => {
        $(impl Value for $type {
            const NAME: &'static str = $name;

            fn parse(text: &str) -> Result<Self, String> {
                $parse(text)
            }

            fn written(&self) -> String {
                $written(self)
            }
        })+
    };
}

values! {
    u32, "N", whole_number, u32::to_string;
    usize, "N", whole_number, usize::to_string;
    NodeId, "ID", value::parse_node_id, |id: &NodeId| value::plain(*id).to_string();
    String, "NAME", as_it_is, String::clone;
    PathBuf, "DIR", as_it_is, |path: &PathBuf| path.to_string_lossy().into_owned();
    FilePath, "FILE",
        |text: &str| Ok(FilePath(text.into())),
        |path: &FilePath| path.0.to_string_lossy().into_owned();
    SocketAddr, "IP:PORT", value::parse_listen, SocketAddr::to_string;
    HostPort, "HOST:PORT", str::parse, HostPort::to_string;
    BTreeMap<NodeId, HostPort>, "1=HOST:PORT,…",
        value::parse_initial_cluster, value::format_initial_cluster;
    BTreeMap<String, String>, "LABEL=VALUE,…", value::parse_locality, value::format_locality;
    LogStore, "STORE", str::parse, LogStore::to_string;
    MemoryPlan, "SIZE",
        |text| value::parse_bytes(text).map(MemoryPlan::new),
        |plan: &MemoryPlan| value::format_bytes(plan.total);
    Size, "SIZE", str::parse, Size::to_string;
    Duration, "DURATION", value::parse_duration, |time: &Duration| value::format_duration(*time);
    LogFilter, "LEVEL", str::parse, LogFilter::to_string;
    LogFormat, "FORMAT", str::parse, LogFormat::to_string;
}

impl Value for bool {
    const NAME: &'static str = "BOOL";
    const BARE: Option<&'static str> = Some("true");

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err("expected true or false".to_owned()),
        }
    }

    fn written(&self) -> String {
        self.to_string()
    }
}

impl<T: Value> Value for Option<T> {
    const NAME: &'static str = T::NAME;

    fn parse(text: &str) -> Result<Self, String> {
        T::parse(text).map(Some)
    }

    fn written(&self) -> String {
        self.as_ref().map_or_else(String::new, T::written)
    }
}

fn whole_number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "expected a whole number".to_owned())
}

fn as_it_is<T: From<String>>(text: &str) -> Result<T, String> {
    Ok(text.to_owned().into())
}
