//! The version of the program that speaks this contract.

/// Its version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What it was built for and how, for people: `x86_64-linux release`.
#[must_use]
pub fn build() -> String {
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    format!("{}-{} {profile}", std::env::consts::ARCH, std::env::consts::OS)
}
