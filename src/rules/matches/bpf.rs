//! `-m bpf --bytecode`: a classic BPF program (net/netfilter/xt_bpf.c, net/core/filter.c).
//!
//! The program is checked when the rule is read, as `bpf_check_classic` does: known instructions, jumps forward and inside,
//! memory written before it is read, a return at the end. So running it ends after at most as many steps as it has
//! instructions; a load beyond the packet ends it with 0. Offsets are from the IP header. The kernel's own data (loads at
//! negative offsets: interface, mark, and so on) and `--object-pinned` (eBPF) are refused.

use super::argument::{push, unsigned};
use crate::rules::context::{Context, World};
use crate::rules::diagnostic::Problem;
use crate::rules::extension::{Answer, Basis, Extension, Given, Matcher, OptionSpec, Whole};
use crate::rules::registry::Registry;
use crate::wire::{Family, get_u16, get_u32};

/// Instructions of a program (`XT_BPF_MAX_NUM_INSTR`).
const PROGRAM_MAX: usize = 64;
/// Words of memory (`BPF_MEMWORDS`).
const MEMORY: u32 = 16;

/// One instruction (`struct sock_filter`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Instruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

/// `-m bpf`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BpfMatch {
    program: Vec<Instruction>,
}

const BYTECODE: u8 = 1;
const OBJECT_PINNED: u8 = 2;

impl Extension for BpfMatch {
    const NAME: &'static str = "bpf";
    const OPTIONS: &'static [OptionSpec] = &[
        OptionSpec::new(BYTECODE, &["--bytecode"]).group(1),
        OptionSpec::new(OBJECT_PINNED, &["--object-pinned"]).group(1),
    ];

    fn new(_: Family) -> BpfMatch {
        BpfMatch { program: Vec::new() }
    }

    fn read(&mut self, id: u8, given: &Given<'_>) -> Result<(), Problem> {
        let token = given.argument();
        if id == OBJECT_PINNED {
            let message = "--object-pinned is an eBPF program of the kernel's";
            return Err(Problem::new(token.span, message, "cannot be run here")
                .help("use --bytecode with what `nfbpf_compile` or `tcpdump -ddd` prints"));
        }
        let program = program(&token.text).and_then(|program| verify(&program).map(|()| program));
        self.program = program.map_err(|why| {
            Problem::new(token.span, format!("bad program: {why}"), "not a classic BPF program")
                .help("write it as `N,code jt jf k,...`, as `nfbpf_compile` prints it")
        })?;
        Ok(())
    }

    fn check(&self, whole: &Whole<'_>) -> Result<(), Problem> {
        match self.program.is_empty() {
            true => Err(whole.problem("bpf without a program", "incomplete").help("add --bytecode")),
            false => Ok(()),
        }
    }

    fn save(&self, out: &mut String, _: Family) {
        push(out, format_args!(" --bytecode \"{}", self.program.len()));
        for Instruction { code, jt, jf, k } in &self.program {
            push(out, format_args!(",{code} {jt} {jf} {k}"));
        }
        out.push('"');
    }
}

/// `N,code jt jf k,...` with N instructions.
fn program(text: &str) -> Result<Vec<Instruction>, &'static str> {
    let mut parts = text.trim_end_matches(',').split(',');
    let count = parts.next().and_then(|count| unsigned(count.trim(), PROGRAM_MAX as u64));
    let count = count.filter(|&count| count != 0).ok_or("it does not begin with its length, 1 to 64")?;
    let program: Option<Vec<Instruction>> = parts.map(instruction).collect();
    let program = program.ok_or("an instruction is four numbers")?;
    match program.len() == count as usize {
        true => Ok(program),
        false => Err("it is not as long as it says"),
    }
}

fn instruction(text: &str) -> Option<Instruction> {
    let mut words = text.split_ascii_whitespace();
    let mut next = |max: u64| {
        let word = words.next()?;
        word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse::<u64>().ok().filter(|&n| n <= max))?
    };
    let code = next(u16::MAX.into())? as u16;
    let (jt, jf) = (next(u8::MAX.into())? as u8, next(u8::MAX.into())? as u8);
    let k = next(u32::MAX.into())? as u32;
    words.next().is_none().then_some(Instruction { code, jt, jf, k })
}

/// Classes, sizes and modes of an instruction's code (linux/bpf_common.h).
mod code {
    pub(super) const LD_W_ABS: u16 = 0x20;
    pub(super) const LD_H_ABS: u16 = 0x28;
    pub(super) const LD_B_ABS: u16 = 0x30;
    pub(super) const LD_W_IND: u16 = 0x40;
    pub(super) const LD_H_IND: u16 = 0x48;
    pub(super) const LD_B_IND: u16 = 0x50;
    pub(super) const LD_IMM: u16 = 0x00;
    pub(super) const LD_MEM: u16 = 0x60;
    pub(super) const LD_LEN: u16 = 0x80;
    pub(super) const LDX_IMM: u16 = 0x01;
    pub(super) const LDX_MEM: u16 = 0x61;
    pub(super) const LDX_LEN: u16 = 0x81;
    pub(super) const LDX_MSH: u16 = 0xb1;
    pub(super) const ST: u16 = 0x02;
    pub(super) const STX: u16 = 0x03;
    pub(super) const ALU: u16 = 0x04;
    pub(super) const NEG: u16 = 0x84;
    pub(super) const JMP: u16 = 0x05;
    pub(super) const RET_K: u16 = 0x06;
    pub(super) const RET_A: u16 = 0x16;
    pub(super) const TAX: u16 = 0x07;
    pub(super) const TXA: u16 = 0x87;
    /// The operand is X, not K.
    pub(super) const X: u16 = 0x08;
    pub(super) const CLASS: u16 = 0x07;
    pub(super) const OPERATION: u16 = 0xf0;
}

/// What `bpf_check_classic` asks for.
fn verify(program: &[Instruction]) -> Result<(), &'static str> {
    for (at, one) in program.iter().enumerate() {
        let beyond = |jump: u32| u64::from(jump) + at as u64 + 1 >= program.len() as u64;
        let operation = one.code & code::OPERATION;
        match one.code {
            code::LD_W_ABS | code::LD_H_ABS | code::LD_B_ABS if one.k >> 31 != 0 => {
                return Err("loads at negative offsets, the kernel's own data, cannot be run here");
            }
            code::LD_W_ABS | code::LD_H_ABS | code::LD_B_ABS | code::LD_W_IND | code::LD_H_IND | code::LD_B_IND => {}
            code::LD_IMM | code::LD_LEN | code::LDX_IMM | code::LDX_LEN | code::LDX_MSH => {}
            code::LD_MEM | code::LDX_MEM | code::ST | code::STX if one.k >= MEMORY => return Err("no such memory"),
            code::LD_MEM | code::LDX_MEM | code::ST | code::STX => {}
            code::NEG | code::RET_K | code::RET_A | code::TAX | code::TXA => {}
            other
                if other & !(code::OPERATION | code::X) == code::ALU
                    && operation <= 0xa0
                    && other & !code::X != code::NEG =>
            {
                let constant = other & code::X == 0;
                if constant && matches!(operation, 0x30 | 0x90) && one.k == 0 {
                    return Err("division by zero");
                }
                if constant && matches!(operation, 0x60 | 0x70) && one.k > 31 {
                    return Err("a shift is by 31 bits at most");
                }
            }
            code::JMP if beyond(one.k) => return Err("a jump beyond the end"),
            code::JMP => {}
            other if other & !(code::OPERATION | code::X) == code::JMP && (0x10..=0x40).contains(&operation) => {
                if beyond(one.jt.into()) || beyond(one.jf.into()) {
                    return Err("a jump beyond the end");
                }
            }
            _ => return Err("an unknown instruction"),
        }
    }
    if !matches!(program.last(), Some(Instruction { code: code::RET_K | code::RET_A, .. })) {
        return Err("it does not end with a return");
    }
    memory_is_written(program)
}

/// On every way to a load from memory there is a store (`check_load_and_stores`).
fn memory_is_written(program: &[Instruction]) -> Result<(), &'static str> {
    let mut reached = vec![u16::MAX; program.len()];
    let mut written = 0u16;
    for (at, one) in program.iter().enumerate() {
        written &= reached[at];
        let mut reach = |jump: u32, written: u16| {
            if let Some(known) = reached.get_mut(at + 1 + jump as usize) {
                *known &= written;
            }
        };
        match one.code {
            code::ST | code::STX => written |= 1 << one.k,
            code::LD_MEM | code::LDX_MEM if written >> one.k & 1 == 0 => {
                return Err("memory is read before it is written");
            }
            code::JMP => {
                reach(one.k, written);
                written = u16::MAX;
            }
            other if other & code::CLASS == code::JMP => {
                reach(one.jt.into(), written);
                reach(one.jf.into(), written);
                written = u16::MAX;
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the instruction at `at` loads from the packet; `None` beyond it, which ends the program.
fn load(packet: &[u8], width: u16, at: u64) -> Option<u32> {
    let at = usize::try_from(at).ok()?;
    let bytes = packet.get(at..)?;
    match width & 0x18 {
        0x00 => bytes.get(..4).map(|bytes| get_u32(bytes, 0)),
        0x08 => bytes.get(..2).map(|bytes| get_u16(bytes, 0).into()),
        _ => bytes.first().map(|&byte| byte.into()),
    }
}

/// Runs a verified program over a packet (`bpf_prog_run`): what it returns.
fn run(program: &[Instruction], packet: &[u8]) -> u32 {
    let (mut a, mut x) = (0u32, 0u32);
    let mut memory = [0u32; MEMORY as usize];
    let mut at = 0;
    while let Some(one) = program.get(at) {
        at += 1;
        let operand = if one.code & code::X != 0 { x } else { one.k };
        let loaded = match one.code {
            code::LD_W_ABS | code::LD_H_ABS | code::LD_B_ABS => Some(load(packet, one.code, one.k.into())),
            // The sum is a signed number of 32 bits, and nothing is there at negative ones.
            code::LD_W_IND | code::LD_H_IND | code::LD_B_IND => {
                let sum = u64::from(x.wrapping_add(one.k));
                Some(if sum >> 31 == 0 { load(packet, one.code, sum) } else { None })
            }
            _ => None,
        };
        match loaded {
            Some(Some(value)) => {
                a = value;
                continue;
            }
            Some(None) => return 0,
            None => {}
        }
        match one.code {
            code::LD_IMM => a = one.k,
            code::LD_LEN => a = packet.len() as u32,
            code::LD_MEM => a = memory[(one.k % MEMORY) as usize],
            code::LDX_IMM => x = one.k,
            code::LDX_LEN => x = packet.len() as u32,
            code::LDX_MEM => x = memory[(one.k % MEMORY) as usize],
            code::LDX_MSH => match load(packet, 0x10, one.k.into()) {
                Some(byte) => x = (byte & 0xf) * 4,
                None => return 0,
            },
            code::ST => memory[(one.k % MEMORY) as usize] = a,
            code::STX => memory[(one.k % MEMORY) as usize] = x,
            code::TAX => x = a,
            code::TXA => a = x,
            code::RET_K => return one.k,
            code::RET_A => return a,
            code::JMP => at += one.k as usize,
            other if other & code::CLASS == code::ALU => match compute(other & code::OPERATION, a, operand) {
                Some(value) => a = value,
                None => return 0,
            },
            other => {
                let holds = match other & code::OPERATION {
                    0x10 => a == operand,
                    0x20 => a > operand,
                    0x30 => a >= operand,
                    _ => a & operand != 0,
                };
                at += usize::from(if holds { one.jt } else { one.jf });
            }
        }
    }
    0
}

/// Arithmetic; `None` for a division by zero, which ends the program.
fn compute(operation: u16, a: u32, operand: u32) -> Option<u32> {
    Some(match operation {
        0x00 => a.wrapping_add(operand),
        0x10 => a.wrapping_sub(operand),
        0x20 => a.wrapping_mul(operand),
        0x30 => a.checked_div(operand)?,
        0x40 => a | operand,
        0x50 => a & operand,
        // Shifts by a register use its lowest five bits.
        0x60 => a.wrapping_shl(operand),
        0x70 => a.wrapping_shr(operand),
        0x80 => a.wrapping_neg(),
        0x90 => a.checked_rem(operand)?,
        _ => a ^ operand,
    })
}

impl Matcher for BpfMatch {
    type State = ();

    fn state(&self, _: &mut Registry) {}

    fn basis(&self) -> Basis {
        Basis::Packet
    }

    fn test(&self, context: &Context<'_>, _: &dyn World, (): &()) -> Answer {
        (run(&self.program, context.packet.l3_bytes(context.frame)) != 0).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::extension_testing::{read, saved};
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<BpfMatch, String> {
        read(Family::V4, &format!("--bytecode \"{text}\""))
    }

    /// Asked from iptables-legacy 1.8.9.
    #[test]
    fn it_is_saved_as_iptables_saves_it() {
        for (text, printed) in [
            ("4,48 0 0 9,21 0 1 6,6 0 0 1,6 0 0 0", "4,48 0 0 9,21 0 1 6,6 0 0 1,6 0 0 0"),
            ("1, 6 0 0 0", "1,6 0 0 0"),
            ("1,6 0 0 0,", "1,6 0 0 0"),
            ("2,48 0 0 0,22 0 0 0", "2,48 0 0 0,22 0 0 0"),
        ] {
            let value = parse(text).expect(text);
            assert_eq!(saved(&value, Family::V4), format!("--bytecode \"{printed}\""));
        }
    }

    #[test]
    fn programs_that_could_go_wrong_are_refused() {
        for text in [
            "",
            "0,",
            "2,6 0 0 0",
            "1,48 0 0 0",
            "1,6 0 0 -1",
            "1,6 0 0",
            "65,6 0 0 0",
            // Jumps beyond the end, unknown code, memory not written, division by zero, the kernel's own data.
            "2,5 0 0 1,6 0 0 0",
            "2,21 1 0 0,6 0 0 0",
            "2,255 0 0 0,6 0 0 0",
            "2,96 0 0 0,6 0 0 0",
            "2,52 0 0 0,6 0 0 0",
            "2,2 0 0 16,6 0 0 0",
            "2,32 0 0 4294963200,22 0 0 0",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(read::<BpfMatch>(Family::V4, "--object-pinned /sys/fs/bpf/x").is_err());
        // Memory written on one of two ways only.
        assert!(parse("5,21 0 1 5,2 0 0 3,96 0 0 3,22 0 0 0,6 0 0 0").is_err());
        assert!(parse("3,2 0 0 3,96 0 0 3,22 0 0 0").is_ok());
    }

    #[test]
    fn programs_run_over_the_packet() {
        let packet = [0x45, 0, 0, 22, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 2, 10, 2, 0, 2, 0, 53];
        let run = |text: &str| run(&parse(text).expect(text).program, &packet);
        assert_eq!(run("4,48 0 0 9,21 0 1 17,6 0 0 1,6 0 0 0"), 1);
        assert_eq!(run("4,48 0 0 9,21 0 1 6,6 0 0 1,6 0 0 0"), 0);
        // X = header length; the half word there.
        assert_eq!(run("3,177 0 0 0,72 0 0 0,22 0 0 0"), 53);
        assert_eq!(run("2,40 0 0 21,6 0 0 1"), 0, "beyond the packet");
        assert_eq!(run("3,128 0 0 0,4 0 0 1,22 0 0 0"), 23);
    }

    /// All that are known, and some that are not.
    const CODES: &[u16] = &[
        0, 1, 2, 3, 4, 5, 6, 7, 12, 20, 21, 22, 28, 29, 32, 36, 37, 40, 45, 48, 52, 60, 64, 69, 72, 80, 92, 96, 97,
        100, 108, 116, 124, 128, 129, 132, 135, 148, 156, 164, 172, 177,
    ];

    proptest! {
        /// Whatever is let through ends without a panic.
        #[test]
        fn no_program_panics(
            lines in prop::collection::vec((prop::sample::select(CODES), 0u8..4, 0u8..4, 0u32..20), 1..12),
            packet in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let program: Vec<Instruction> = lines.into_iter().map(|(code, jt, jf, k)| Instruction { code, jt, jf, k })
                .chain([Instruction { code: 6, jt: 0, jf: 0, k: 1 }]).collect();
            if verify(&program).is_ok() {
                run(&program, &packet);
            }
        }
    }
}
