//! `kvctl`, the command-line tool of Quorate.
#![allow(dead_code, unused_imports)]

mod cli;
mod duration;
mod encoding;
mod exit;
mod records;

use clap::Parser as _;

fn main() {
    let cli = cli::Cli::parse();
    println!("{cli:#?}");
}
