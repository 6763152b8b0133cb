//! What a test is told by its surroundings: whether it can make namespaces ([`privileged`]), and the settings of
//! `scripts/parity` ([`asked`]). Also for tests that use nothing else of `support`.
#![allow(dead_code)] // each test uses what it needs

/// Whether tests with namespaces can run. With `XROUTER_TEST_ROOT` set they must.
pub(crate) fn privileged() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    assert!(root || std::env::var_os("XROUTER_TEST_ROOT").is_none(), "XROUTER_TEST_ROOT is set, but this is not root");
    if !root {
        eprintln!("passed over: network namespaces need root");
    }
    root
}

/// A setting of `scripts/parity`.
pub(crate) fn asked(name: &str) -> Option<String> {
    std::env::var(format!("XROUTER_PARITY_{name}")).ok().filter(|value| !value.is_empty())
}

/// The same, of those that are numbers.
pub(crate) fn asked_number(name: &str) -> Option<u64> {
    asked(name).map(|text| text.parse().unwrap_or_else(|_| panic!("XROUTER_PARITY_{name}: {text} is not a number")))
}
