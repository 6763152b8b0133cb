//! `-m mac`: who sent the frame on the link (`mac_mt` of xt_mac.c).

use super::common::put;
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::rules::rule::Hook;
use crate::wire::{Family, Mac, ethernet};

const SOURCE: u8 = 0;

/// `-m mac [!] --mac-source XX:XX:XX:XX:XX:XX`. Both ports are Ethernet, so every packet has such an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MacMatch {
    source: Mac,
    invert: bool,
}

/// Six hexadecimal numbers of at most two digits (`xtopt_parse_ethermac`).
fn read_mac(text: &str) -> Option<Mac> {
    let mut bytes = [0u8; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| (1..=2).contains(&part.len()))?;
        let plain = part.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = u8::from_str_radix(part, 16).ok().filter(|_| plain)?;
    }
    parts.next().is_none().then_some(Mac(bytes))
}

impl Extension for MacMatch {
    const NAME: &'static str = "mac";
    const OPTIONS: &'static [OptionSpec] = &[OptionSpec::new(SOURCE, &["--mac-source"]).invertible()];

    fn new(_: Family) -> MacMatch {
        MacMatch { source: Mac([0; 6]), invert: false }
    }

    fn read(&mut self, _: u8, given: &Given<'_>) -> Result<(), Problem> {
        let token = given.argument();
        let source = read_mac(&token.text).ok_or_else(|| {
            Problem::new(token.span, format!("`{}` is not a MAC address", token.text), "expected six bytes")
                .help("write it as 00:11:22:aa:bb:cc")
        })?;
        *self = MacMatch { source, invert: given.invert };
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        whole.needs_option::<MacMatch>()
    }

    fn hooks(&self) -> u8 {
        Hook::Prerouting.bit() | Hook::Input.bit() | Hook::Forward.bit()
    }

    fn save(&self, out: &mut String, _: Family) {
        put(out, self.invert, format_args!("--mac-source {}", self.source));
    }
}

impl Matcher for MacMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        ((ethernet::source(context.frame) == self.source) != self.invert).into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ask, checked, refuses, saves, v4};
    use super::*;

    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        saves::<MacMatch>(
            Family::V4,
            &[
                ("--mac-source 00:11:22:aa:BB:cc", "--mac-source 00:11:22:aa:bb:cc"),
                ("! --mac-source 0:1:2:3:4:5", "! --mac-source 00:01:02:03:04:05"),
            ],
        );
        let bad = [
            "00-11-22-33-44-55",
            "00:11:22:33:44",
            "00:11:22:33:44:55:66",
            "00:11:22:33:44:gg",
            "001122334455",
            "+0:1:2:3:4:5",
        ];
        for mac in bad {
            refuses::<MacMatch>(Family::V4, &[&format!("--mac-source {mac}")]);
        }
        assert!(checked::<MacMatch>(Family::V4, None, "").is_err());
    }

    #[test]
    fn the_frames_source_tells() {
        let frame = v4(17, &[0; 8]);
        assert_eq!(ask::<MacMatch>("--mac-source 02:00:00:00:00:0c", &frame), Answer::Yes);
        assert_eq!(ask::<MacMatch>("! --mac-source 02:00:00:00:00:0c", &frame), Answer::No);
        assert_eq!(ask::<MacMatch>("--mac-source 02:00:00:00:00:0a", &frame), Answer::No);
    }
}
