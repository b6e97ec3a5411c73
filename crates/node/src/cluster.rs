//! This node in its cluster: who it is, how the cluster forms, the map and what follows from it, where
//! leaders should be.

mod addresses;
mod bootstrap;
mod identity;
mod keeper;
mod leadership;

pub(crate) use addresses::notice;
pub(crate) use bootstrap::{AskAnswers, Plan, run as form};
pub(crate) use identity::{Formed, Identity};
pub(crate) use keeper::{Keeper, MAP_RECORD, META};
pub(crate) use leadership::{drain as drain_leaderships, give_all_away, keep as keep_leaderships};
