//! kvnode library
