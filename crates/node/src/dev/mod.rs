//! `kvnode dev`.
