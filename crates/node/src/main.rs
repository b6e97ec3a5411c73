//! kvnode
fn main() {}
