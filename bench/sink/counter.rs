//! UDP packets that arrive at an interface, counted before the host's stack works on them: [`Counter`].
//!
//! A tc filter does the counting: with an XDP program there the kernel would have to copy each packet once more (AF_XDP's skbs
//! have no headroom), and that would be measured too. What is counted is dropped, or sent back with both ends exchanged.

use std::error::Error;
use std::os::fd::AsFd;

use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, ObjectBuilder, TC_INGRESS, TcHook, TcHookBuilder};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sink.bpf.o"));

/// The filter in place; it goes with the value, in the network namespace of whoever drops it.
#[derive(Debug)]
pub(crate) struct Counter {
    counts: MapHandle,
    hook: TcHook,
    _object: Object,
}

impl Counter {
    /// At interface `dev` of this thread's network namespace; with `answers` every packet is sent back.
    pub(crate) fn new(dev: &str, answers: bool) -> Result<Counter, Box<dyn Error>> {
        let ifindex = xrouter::xdp::ifindex(dev).ok_or_else(|| format!("no interface {dev}"))?;
        libbpf_rs::set_print(None); // it complains when the hook is there already
        let object = ObjectBuilder::default().name("sink")?.open_memory(OBJECT)?.load()?;
        let counts = map(&object, "sink_count")?;
        map(&object, ".data.answers")?.update(&0u32.to_ne_bytes(), &u32::from(answers).to_ne_bytes(), MapFlags::ANY)?;
        let program = object.progs().next().ok_or("the object has no program")?;
        let mut hook = TcHookBuilder::new(program.as_fd())
            .ifindex(ifindex as i32)
            .replace(true)
            .handle(1)
            .priority(1)
            .hook(TC_INGRESS);
        hook.create()?.attach()?;
        Ok(Counter { counts, hook, _object: object })
    }

    /// How many have arrived so far.
    pub(crate) fn count(&self) -> Result<u64, Box<dyn Error>> {
        let found = self.counts.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY)?;
        let mut sum = 0;
        for value in found.ok_or("the map has its one entry")? {
            sum += u64::from_ne_bytes(value.as_slice().try_into()?);
        }
        Ok(sum)
    }
}

fn map(object: &Object, name: &str) -> Result<MapHandle, Box<dyn Error>> {
    let found = object.maps().find(|map| map.name() == name).ok_or_else(|| format!("the object has no map {name}"))?;
    Ok(MapHandle::try_from(&found)?)
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = self.hook.detach();
    }
}
