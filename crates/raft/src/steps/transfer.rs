//! Leadership transfer (Raft thesis §3.10).

use crate::error::TransferError;
use crate::message::Message;
use crate::output::{Event, TransferEnd};
use crate::raft::Raft;
use crate::role::{Role, Transfer};
use crate::types::ReplicaId;

impl Raft {
    /// Starts a transfer; see [`Raft::transfer_leader`].
    pub(crate) fn start_transfer(&mut self, to: ReplicaId) -> Result<(), TransferError> {
        let deadline = self.now.after(self.config.election_min);
        let Role::Leader(leader) = &mut self.role else {
            return Err(TransferError::NotLeader { hint: self.leader() });
        };
        if to == self.me.id {
            return Err(TransferError::AlreadyLeader(to));
        }
        // Only incoming voters: an outgoing one is about to lose its vote.
        if !self.members.current().incoming().contains(&to) {
            return Err(TransferError::NotVoter(to));
        }
        if let Some(running) = &leader.transfer {
            if running.to == to {
                return Ok(());
            }
            let end = TransferEnd::Replaced;
            self.out.events.push(Event::Transfer { to: running.to, end });
        }
        leader.transfer = Some(Transfer { to, deadline });
        leader.dirty = true;
        let readers = leader.reads.drop_all();
        self.answer(readers, None);
        self.send_timeout_now();
        Ok(())
    }

    /// Asks the target to start its election, if it has the whole log. Repeated with each
    /// heartbeat.
    pub(crate) fn send_timeout_now(&mut self) {
        let last = self.log.last();
        let Role::Leader(leader) = &self.role else { return };
        let Some(transfer) = &leader.transfer else { return };
        if let Some(progress) = leader.progress.get(&transfer.to)
            && progress.matched == last.index
        {
            self.send(progress.peer, Message::TimeoutNow { last });
        }
    }

    /// Continues to lead when the target did not take over in time.
    pub(crate) fn check_transfer(&mut self) {
        let now = self.now;
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(transfer) = leader.transfer.take_if(|transfer| now >= transfer.deadline) {
            let end = TransferEnd::TimedOut;
            self.out.events.push(Event::Transfer { to: transfer.to, end });
        }
    }
}
