//! `kvnode`, the Quorate server: the command line, a local cluster for a first look (`dev`), the
//! health probe of containers, and the log. What a node does is in `quorate_node`.

#![allow(rustdoc::broken_intra_doc_links, reason = "the comments of flags are help texts")]

mod allocator;
mod cli;
mod dev;
mod health_probe;
mod inspect;
mod telemetry;

use std::process::ExitCode;

fn main() -> ExitCode {
    quorate_node::install_panic_hook();
    cli::main()
}
