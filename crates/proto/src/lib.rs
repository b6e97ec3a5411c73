//! The wire contract of Quorate: `proto/` compiled, and the small pure rules that server and client
//! must agree on.

pub mod code;
pub mod content;
pub mod failure;
pub mod feature;
pub mod hash;
pub mod health;
pub mod ids;
pub mod level;
pub mod limits;
pub mod map;
pub mod reason;
pub mod secret;
pub mod sent;
pub mod token;
pub mod version;

/// The client API, package `quorate.v1`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("quorate.v1");
}

/// The contract between nodes.
pub mod raft {
    /// Package `quorate.raft.v1`: the messages between nodes, and the commands that log entries
    /// hold.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("quorate.raft.v1");
    }
}

/// The encoded `FileDescriptorSet` of the client API, for reflection, without the contract between
/// nodes.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/client.bin"));

/// The encoded `FileDescriptorSet` of every file under `proto/`, for tests of the contract.
pub const FILE_DESCRIPTOR_SET_ALL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/all.bin"));
