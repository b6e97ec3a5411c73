//! The gRPC codes: their number and their names.

use tonic::Code;

/// How many codes gRPC has; their numbers are those below.
pub const CODES: usize = 17;

/// The name of a code as in the documents of gRPC, such as `UNAVAILABLE`.
#[must_use]
pub const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_below_the_count_is_a_code_and_the_count_is_none() {
        let codes = (0..i32::try_from(CODES).unwrap()).map(|number| (number, Code::from(number)));
        for (number, code) in codes {
            assert_eq!(code as i32, number, "{}", code_name(code));
        }
        assert_eq!(Code::from(CODES as i32), Code::Unknown, "a code has no place");
    }

    /// `Code` prints `FailedPrecondition`, the documents have FAILED_PRECONDITION.
    #[test]
    fn the_names_are_those_of_the_codes() {
        for number in 0..i32::try_from(CODES).unwrap() {
            let code = Code::from(number);
            let name = code_name(code).replace('_', "").to_lowercase();
            assert_eq!(name, format!("{code:?}").to_lowercase());
        }
    }
}
