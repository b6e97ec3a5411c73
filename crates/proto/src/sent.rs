//! Whether a failed request ever left this process: the one proof that a write which got no answer
//! was not applied. Clients, and nodes that pass calls on, must agree on it.

use std::error::Error;

/// Whether this error of a request, or a cause of it, proves that nothing was sent: the connection
/// could not be made, or it ended while the request still waited to be sent.
#[must_use]
pub fn never_left(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let canceled = error.downcast_ref().is_some_and(hyper::Error::is_canceled);
        if canceled || error.is::<tonic::ConnectError>() {
            return true;
        }
        next = error.source();
    }
    false
}
