//! A host behind a narrow link: [`Far`], 10.3.0.2.

use std::process::Command;

use crate::support::{Net, Place, must};

/// One more namespace behind the host outside, with a narrower link before it. Named so that what is left of a killed run
/// is swept.
pub(crate) struct Far {
    /// Its name.
    pub(crate) name: String,
}

impl Far {
    /// Makes it, with routes there and back.
    pub(crate) fn new(net: &Net) -> Far {
        let far = Far { name: net.name(Place::Wan).replace(['w'], "f") };
        must(Command::new("ip").args(["netns", "add", &far.name]));
        net.ip(Place::Wan, &format!("link add far type veth peer name eth0 netns {}", far.name));
        net.ip(Place::Wan, "address add 10.3.0.1/24 dev far");
        net.ip(Place::Wan, "link set far mtu 1300 up");
        net.must(Place::Wan, "sysctl -qw net.ipv4.ip_forward=1");
        far.ip("address add 10.3.0.2/24 dev eth0");
        far.ip("link set eth0 up");
        far.ip("route add default via 10.3.0.1");
        net.ip(Place::Router, "route add 10.3.0.0/24 via 10.2.0.2 dev wan");
        far
    }

    fn ip(&self, words: &str) {
        must(Command::new("ip").args(["-n", &self.name]).args(words.split(' ')));
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}
