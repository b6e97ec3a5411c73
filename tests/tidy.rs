//! What a reviewer would have to repeat: the rules of absence of the architecture, caps, names,
//! prose, links, and the shape of the wire contract. Everything here reads files and runs nothing.

#[path = "tidy/absence.rs"]
mod absence;
#[path = "tidy/background.rs"]
mod background;
#[path = "tidy/contract.rs"]
mod contract;
#[path = "tidy/crates.rs"]
mod crates;
#[path = "tidy/dead.rs"]
mod dead;
#[path = "tidy/files.rs"]
mod files;
#[path = "tidy/graph.rs"]
mod graph;
#[path = "tidy/links.rs"]
mod links;
#[path = "tidy/needs.rs"]
mod needs;
#[path = "tidy/prose.rs"]
mod prose;
#[path = "tidy/sources.rs"]
mod sources;
