//! Application helpers against the running kernel's: the same dialogues through both, and every packet that comes out
//! compared byte for byte, expectations and connections line for line.
//!
//! Needs root, a kernel with network namespaces and the helpers, iptables-legacy and conntrack; says so and passes without.

mod dialogues;
mod kernel;
mod ours;
mod talk;
#[path = "../../src/conntrack/testing.rs"]
mod testing;

use kernel::Kernel;
use ours::Ours;

fn can_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("XROUTER_TEST_ROOT").is_none(), "XROUTER_TEST_ROOT is set, but this is not root");
    if !root {
        eprintln!("needs root for network namespaces; not run");
    }
    root
}

#[test]
fn dialogues_go_as_through_the_kernel() {
    if !can_run() {
        return;
    }
    let mut kernel = Kernel::new().unwrap_or_else(|error| panic!("cannot set up the namespaces: {error}"));
    let mut ours = Ours::new();
    let mut wrong = Vec::new();
    for dialogue in dialogues::ALL {
        let theirs = dialogue.run(&mut kernel);
        let mine = dialogue.run(&mut ours);
        if theirs != mine {
            let at = theirs.iter().zip(&mine).take_while(|(one, other)| one == other).count();
            let line = |lines: &[String]| lines.get(at).cloned().unwrap_or_else(|| "nothing more".to_owned());
            wrong.push(format!("{}: line {at}\n  kernel: {}\n  ours:   {}", dialogue.name, line(&theirs), line(&mine)));
        }
        if std::env::var_os("XROUTER_SHOW").is_some() {
            println!("== {}\n   {}", dialogue.name, theirs.join("\n   "));
        }
    }
    assert!(wrong.is_empty(), "{} of {} dialogues differ:\n{}", wrong.len(), dialogues::ALL.len(), wrong.join("\n"));
}
