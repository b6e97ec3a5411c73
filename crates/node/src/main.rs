//! `kvnode`, the Quorate server.

use std::process::ExitCode;

fn main() -> ExitCode {
    quorate_node::exit::install_panic_hook();
    quorate_node::cli::main()
}
