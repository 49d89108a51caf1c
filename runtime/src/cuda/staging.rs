//! Batches on their way to the device, and results on their way back, without waiting for either.

use super::driver::{Context, Event, Memory, Pinned, Stream};
use super::launch::Fault;
use crate::backend::Late;
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::sync::Arc;

/// Tensors lie at multiples of this.
const ALIGN: u64 = precast_plan::ALIGN;

/// One of two buffers: while the device reads one batch, the host writes the next.
struct Buffer {
    host: Pinned,
    device: Memory,
    /// The copy to the device is done: the host may write again.
    uploaded: Event,
    /// The step has taken the batch: the device buffer may be overwritten.
    taken: Event,
}

/// The input region's way in.
///
/// The host writes into page-locked memory; a stream of its own copies to the device; the step's
/// stream then moves the batch to where the kernels read it, which takes microseconds.
pub struct Inbound {
    stream: Stream,
    buffers: [Buffer; 2],
    current: usize,
    /// Byte ranges of the current buffer that were written since the last batch was sent.
    written: Vec<(u64, u64)>,
}

impl Inbound {
    /// For an input region of `bytes`; `None` where the device has not enough memory.
    ///
    /// # Errors
    /// If the driver fails otherwise.
    pub fn new(context: &Arc<Context>, bytes: u64) -> Result<Option<Inbound>> {
        let mut buffers = vec![];
        for _ in 0..2 {
            let Some(device) = Memory::new(context, bytes)? else { return Ok(None) };
            buffers.push(Buffer {
                host: Pinned::new(context, bytes as usize)?,
                device,
                uploaded: Event::untimed(context)?,
                taken: Event::untimed(context)?,
            });
        }
        let buffers = buffers.try_into().unwrap_or_else(|_| unreachable!("two were made"));
        let stream = Stream::new(context)?;
        Ok(Some(Inbound { stream, buffers, current: 0, written: vec![] }))
    }

    /// Puts bytes at `offset` of the next batch. Waits only where the host is two batches ahead.
    ///
    /// # Errors
    /// If the device failed.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let buffer = &mut self.buffers[self.current];
        if self.written.is_empty() {
            buffer.uploaded.wait()?;
        }
        let at = offset as usize;
        buffer.host.slice_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        self.written.push((offset, bytes.len() as u64));
        Ok(())
    }

    /// What was written at `offset` and not sent yet.
    pub fn pending(&self, offset: u64, bytes: u64) -> Option<&[u8]> {
        self.written.contains(&(offset, bytes)).then(|| {
            let at = offset as usize;
            &self.buffers[self.current].host.slice()[at..at + bytes as usize]
        })
    }

    /// Sends what was written to `region`, before anything that `step` is given from now on.
    ///
    /// # Errors
    /// If the device failed.
    pub fn send(&mut self, region: u64, step: &Stream) -> Result<()> {
        if self.written.is_empty() {
            return Ok(());
        }
        let ranges = joined(&mut self.written);
        let buffer = &self.buffers[self.current];
        self.stream.wait(&buffer.taken)?;
        for &(at, bytes) in &ranges {
            let from = &buffer.host.slice()[at as usize..(at + bytes) as usize];
            self.stream.upload(buffer.device.address + at, from)?;
        }
        buffer.uploaded.record(&self.stream)?;
        step.wait(&buffer.uploaded)?;
        for &(at, bytes) in &ranges {
            step.copy(region + at, buffer.device.address + at, bytes)?;
        }
        buffer.taken.record(step)?;
        self.current ^= 1;
        self.written.clear();
        Ok(())
    }
}

/// Ranges in order, those with nothing but padding between them as one.
fn joined(list: &mut [(u64, u64)]) -> Vec<(u64, u64)> {
    list.sort_unstable();
    let mut out: Vec<(u64, u64)> = vec![];
    for &(at, bytes) in list.iter() {
        match out.last_mut() {
            Some((from, length)) if at <= (*from + *length).next_multiple_of(ALIGN) => {
                *length = (*length).max(at + bytes - *from);
            }
            _ => out.push((at, bytes)),
        }
    }
    out
}

/// Bytes of one value on its way back, and most values of one request.
const VALUE: usize = 16;
const VALUES: usize = 8;

struct Slot {
    /// Recorded before the first work whose results are asked for, and after the copies.
    begin: Event,
    end: Event,
    lengths: Vec<usize>,
}

/// Values on their way back, oldest first.
pub struct Outbound {
    memory: Pinned,
    slots: Vec<Slot>,
    /// Slots in flight, oldest first.
    sent: VecDeque<usize>,
    next: usize,
    /// Whether the next slot's beginning has been marked.
    begun: bool,
}

impl Outbound {
    /// With room for `slots` requests.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn new(context: &Arc<Context>, slots: usize) -> Result<Outbound> {
        let list = (0..slots).map(|_| {
            Ok(Slot { begin: Event::new(context)?, end: Event::new(context)?, lengths: vec![] })
        });
        Ok(Outbound {
            memory: Pinned::new(context, slots * VALUE * (VALUES + 1))?,
            slots: list.collect::<Result<_>>()?,
            sent: VecDeque::with_capacity(slots),
            next: 0,
            begun: false,
        })
    }

    /// Requests that fit at once.
    pub fn room(&self) -> usize {
        self.slots.len()
    }

    /// Marks where the time of the next request begins, unless it is marked.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn begin(&mut self, stream: &Stream) -> Result<()> {
        if !self.begun {
            self.slots[self.next].begin.record(stream)?;
            self.begun = true;
        }
        Ok(())
    }

    /// Asks for the values of (address, bytes) once the stream has come here, and for the fault.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn request(&mut self, values: &[(u64, usize)], fault: u64, stream: &Stream) -> Result<()> {
        assert!(
            self.sent.len() < self.slots.len(),
            "requests are received before the ring is full"
        );
        assert!(values.len() <= VALUES && values.iter().all(|v| v.1 <= VALUE), "small values");
        self.begin(stream)?;
        let base = self.memory.pointer.wrapping_add(self.next * VALUE * (VALUES + 1));
        let all = values.iter().copied().chain([(fault, 8)]);
        for (i, (address, bytes)) in all.enumerate() {
            // SAFETY: inside of the slot, which nothing else uses until it is received.
            unsafe { stream.download(base.wrapping_add(i * VALUE), address, bytes)? };
        }
        let slot = &mut self.slots[self.next];
        slot.end.record(stream)?;
        slot.lengths.clear();
        slot.lengths.extend(values.iter().map(|v| v.1));
        self.sent.push_back(self.next);
        self.next = (self.next + 1) % self.slots.len();
        self.begun = false;
        Ok(())
    }

    /// The oldest request's values and the fault word that came with them; `None` where none is
    /// in flight, or, without `wait`, where the device has not come there.
    ///
    /// # Errors
    /// If the device failed; the request is then no longer in flight.
    pub fn receive(&mut self, wait: bool) -> Result<Option<(Late, u64)>> {
        let Some(&at) = self.sent.front() else { return Ok(None) };
        let slot = &self.slots[at];
        let done = if wait { slot.end.wait().map(|()| true) } else { slot.end.passed() };
        if let Ok(false) = done {
            return Ok(None);
        }
        self.sent.pop_front();
        done?;
        let memory = &self.memory.slice()[at * VALUE * (VALUES + 1)..];
        let value = |i: usize, bytes: usize| memory[i * VALUE..i * VALUE + bytes].to_vec();
        let values: Vec<Vec<u8>> =
            slot.lengths.iter().enumerate().map(|(i, &n)| value(i, n)).collect();
        let fault = value(values.len(), 8);
        let fault = u64::from_le_bytes(fault.try_into().expect("8 bytes were taken"));
        Ok(Some((Late { values, seconds: slot.end.since(&slot.begin)? }, fault)))
    }
}

/// What a fault word means: the number of the step and the error, as the CPU says it.
pub fn fault(word: u64) -> Option<(usize, Error)> {
    if word == 0 {
        return None;
    }
    let (step, at, kind) = ((word >> 40) as usize, (word >> 8) as u32, u32::from(word as u8));
    let error = if kind == Fault::IdOutOfRange as u32 {
        Error::new("R0112", format!("the index at position {at} is outside its table"))
            .help("check the data against the size of the embedding")
    } else {
        Error::new("R0703", format!("a kernel reports fault {kind}, which is not defined"))
    };
    Some((step, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_over_padding_alone() {
        let mut list = vec![(256, 4), (0, 100), (128, 64), (1024, 8), (0, 100)];
        // 100 ends inside the 64 bytes before 128; 192 does not reach 256.
        assert_eq!(joined(&mut list), [(0, 192), (256, 4), (1024, 8)]);
        assert_eq!(joined(&mut []), []);
    }

    #[test]
    fn a_fault_names_its_step() {
        assert_eq!(fault(0), None);
        let (step, e) = fault((7 << 40) | (123_456 << 8) | 1).unwrap();
        assert_eq!((step, e.code), (7, "R0112"));
        assert_eq!(e.message, "the index at position 123456 is outside its table");
        assert_eq!(fault(99).unwrap().1.code, "R0703");
    }
}
