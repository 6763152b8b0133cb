//! For tests of single matches and targets: reading one from its words.

use super::context::Context;
use super::extension::{Extension, Given};
use super::rule::Hook;
use super::token::tokenize;
#[allow(unused_imports)] // for those that need a world
pub(super) use super::told::Told;
use crate::conntrack::{CtInfo, CtStatus, Template};
use crate::device::PortId;
use crate::packet::Packet;
use crate::time::Instant;
use crate::wire::Family;

/// Reads `words` (the options alone) as the extension's; the error is the message. [`Extension::check`] is not asked.
pub(super) fn read<E: Extension>(family: Family, words: &str) -> Result<E, String> {
    let tokens = tokenize(words, 0).map_err(|problem| problem.message)?;
    let mut value = E::new(family);
    let (mut at, mut invert) = (0, false);
    while let Some(token) = tokens.get(at) {
        at += 1;
        if token.text == "!" {
            invert = true;
            continue;
        }
        let spec = E::OPTIONS.iter().find(|spec| spec.names.contains(&token.text.as_str()));
        let spec = spec.ok_or_else(|| format!("unknown option {}", token.text))?;
        let arguments = tokens.get(at..at + usize::from(spec.arguments)).ok_or("an argument is missing")?;
        at += arguments.len();
        if invert && !spec.can_invert {
            return Err(format!("{} cannot be inverted", token.text));
        }
        let given =
            Given { name: &token.text, span: token.span, arguments, invert, family, proto: None, owner: token.span };
        value.read(spec.id, &given).map_err(|problem| problem.message)?;
        invert = false;
    }
    Ok(value)
}

/// The options as printed, without the blank before the first.
pub(super) fn saved<E: Extension>(value: &E, family: Family) -> String {
    let mut out = String::new();
    value.save(&mut out, family);
    out.trim_start().to_owned()
}

/// A context at FORWARD, from lan to wan, for `frame`, whose `packet` this is.
pub(super) fn context<'a>(packet: &'a mut Packet, frame: &'a mut [u8], now: Instant) -> Context<'a> {
    Context {
        packet,
        frame,
        hook: Hook::Forward,
        in_port: PortId::LAN,
        out_port: Some(PortId::WAN),
        out_mtu: 1500,
        info: CtInfo::New,
        status: CtStatus(0),
        mark: 0,
        template: Template::DEFAULT,
        traced: false,
        now,
    }
}
