//! The Raft core through its public interface: the rules of the paper, golden scripts, properties,
//! and a simulator.

mod disk;
mod durable;
mod leader;
mod mangled;
mod paper;
mod props;
mod receiver;
mod scripted;
mod scripts;
mod sim;
mod support;
