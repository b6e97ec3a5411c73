//! `kvctl`, the command-line tool of Quorate.
#![allow(dead_code, unused_imports)]

mod cli;
mod duration;
mod encoding;
mod again;
mod command;
mod exit;
mod failure;
mod interrupt;
mod token_file;
mod output;
mod view;
mod wire;
mod records;

use clap::Parser as _;

fn main() {
    let cli = cli::Cli::parse();
    println!("{cli:#?}");
}
