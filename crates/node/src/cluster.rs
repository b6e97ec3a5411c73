//! Membership of this node: its identity, the formation of the cluster, the cluster map and what
//! follows from it, and the placement of leaders.

mod addresses;
mod bootstrap;
mod identity;
mod keeper;
mod leadership;

pub(crate) use addresses::notice;
pub(crate) use bootstrap::{AskAnswers, Plan, run as form};
pub(crate) use identity::{FORMAT, Formed, Identity, Record, look};
pub(crate) use keeper::{Keeper, MAP_RECORD, META};
pub(crate) use leadership::{drain as drain_leaderships, give_all_away, keep as keep_leaderships};
