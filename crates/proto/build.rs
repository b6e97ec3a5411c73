//! Build script: compiles `proto/` with a compiler written in Rust, so that `protoc` is not needed.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message;

/// The client API; reflection shows only these files.
const CLIENT_FILES: [&str; 3] =
    ["quorate/v1/common.proto", "quorate/v1/kv.proto", "quorate/v1/cluster.proto"];

/// The contract between nodes, and the content of their logs.
const NODE_FILES: &str = "quorate/raft/v1";

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("../../proto");
    println!("cargo:rerun-if-changed=../../proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut all: Vec<String> = CLIENT_FILES.map(String::from).to_vec();
    let mut node_files = Vec::new();
    for entry in fs::read_dir(root.join(NODE_FILES))? {
        let name = entry?.file_name();
        node_files.push(format!("{NODE_FILES}/{}", name.to_string_lossy()));
    }
    node_files.sort();
    all.extend(node_files);
    let every = protox::compile(&all, [root])?;
    let client = protox::compile(CLIENT_FILES, [root])?;
    fs::write(out.join("client.bin"), client.encode_to_vec())?;
    fs::write(out.join("all.bin"), every.encode_to_vec())?;

    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(every)?;
    Ok(())
}
