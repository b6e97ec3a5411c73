//! One node: what `kvnode start` runs.

use crate::config::Config;
use crate::exit::Fatal;

/// Runs a node until it is told to stop. `Ok` is a clean stop (exit code 0).
pub fn run(config: Config) -> Result<(), Fatal> {
    drop(config);
    unimplemented!("the node")
}
