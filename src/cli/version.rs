//! `xrouter version`.

use crate::control::startup::Failure;
use crate::control::stats::Build;

pub(super) fn run() -> Result<(), Failure> {
    let Build { version, profile, arch } = Build::current();
    super::print(|out| writeln!(out, "xrouter {version} ({profile}, {arch})"))
}
