//! Version and build of this program.

/// The version, such as `0.1.0`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The highest feature level of this program: of the commands that it applies, and what it names in
/// a Hello.
pub const FEATURE_LEVEL: u32 = 2;

/// The build target and profile, for people: `x86_64-linux release`.
#[must_use]
pub fn build() -> String {
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    format!("{}-{} {profile}", std::env::consts::ARCH, std::env::consts::OS)
}
