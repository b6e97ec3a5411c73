//! `kvnode health`.
