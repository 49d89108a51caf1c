//! Stream capture and the graphs it makes.

use crate::device::{
    CAPTURE_ISOLATION, CAPTURE_UNJOINED, CAPTURE_UNMATCHED, CAPTURE_UNSUPPORTED, Device,
    INVALID_HANDLE, LEGACY, Mark, Op, Status,
};

/// Work and the nodes, earlier in the list, it comes after.
#[derive(Clone)]
pub struct Node {
    pub op: Op,
    pub after: Vec<usize>,
}

/// Captured work.
#[derive(Clone, Default)]
pub struct Graph {
    pub nodes: Vec<Node>,
}

/// That a stream captures.
#[derive(Clone)]
pub struct Capture {
    /// The number of the capture it belongs to.
    pub number: u64,
    /// Whether the capture began in this stream.
    pub origin: bool,
    /// Nodes that the next one comes after.
    pub tail: Vec<usize>,
    /// 0 global, 1 of the thread, 2 relaxed.
    pub mode: u32,
}

impl Device {
    /// Begins a capture in a stream.
    pub fn begin_capture(&mut self, id: u64, mode: u32) -> Result<(), Status> {
        if id == LEGACY {
            return Err(CAPTURE_UNSUPPORTED);
        }
        if self.stream(id)?.capture.is_some() {
            return Err(CAPTURE_UNSUPPORTED);
        }
        let number = self.handle();
        self.captures.insert(number, Graph::default());
        self.stream(id)?.capture = Some(Capture { number, origin: true, tail: vec![], mode });
        Ok(())
    }

    /// Ends a capture and gives its graph.
    pub fn end_capture(&mut self, id: u64) -> Result<Graph, Status> {
        let capture = self.stream(id)?.capture.clone().ok_or(CAPTURE_UNMATCHED)?;
        if !capture.origin {
            return Err(CAPTURE_UNMATCHED);
        }
        let graph = self.captures.remove(&capture.number).expect("a capture has a graph");
        // What another stream captured must have been waited for by the first stream.
        let mut reached = vec![false; graph.nodes.len()];
        let mut open = capture.tail.clone();
        while let Some(node) = open.pop() {
            if !std::mem::replace(&mut reached[node], true) {
                open.extend(&graph.nodes[node].after);
            }
        }
        let mut joined = true;
        for stream in self.streams.values_mut() {
            if stream.capture.as_ref().is_some_and(|c| c.number == capture.number) {
                let tail = stream.capture.take().expect("it captures").tail;
                joined &= tail.iter().all(|&n| reached[n]);
            }
        }
        if joined && reached.iter().all(|&r| r) { Ok(graph) } else { Err(CAPTURE_UNJOINED) }
    }

    /// Appends work to what a stream captures.
    pub fn capture_op(&mut self, id: u64, op: Op) -> Result<(), Status> {
        let capture = self.stream(id)?.capture.clone().ok_or(INVALID_HANDLE)?;
        let graph = self.captures.get_mut(&capture.number).expect("a capture has a graph");
        graph.nodes.push(Node { op, after: capture.tail });
        let node = graph.nodes.len() - 1;
        self.stream(id)?.capture.as_mut().expect("it captures").tail = vec![node];
        Ok(())
    }

    /// Records an event in a stream, captured or not.
    pub fn record(&mut self, event: u64, id: u64) -> Result<(), Status> {
        let mark = match self.stream(id)?.capture.clone() {
            Some(c) => Mark::Captured(c.number, c.tail),
            None => Mark::Moment(self.mark(id)),
        };
        *self.events.get_mut(&event).ok_or(INVALID_HANDLE)? = mark;
        Ok(())
    }

    /// Makes a stream wait for an event; one of a capture takes the stream into it.
    pub fn wait_event(&mut self, id: u64, event: u64) -> Result<(), Status> {
        let mark = self.events.get(&event).ok_or(INVALID_HANDLE)?.clone();
        let capturing = self.stream(id)?.capture.clone();
        match (mark, capturing) {
            (Mark::Never, _) => Ok(()),
            (Mark::Moment(ticket), None) => self.enqueue(id, Op::Wait(ticket)),
            // A captured stream may not depend on what is not captured.
            (Mark::Moment(_), Some(_)) => Err(CAPTURE_ISOLATION),
            (Mark::Captured(number, nodes), capturing) => {
                if !self.captures.contains_key(&number) {
                    return Err(CAPTURE_ISOLATION);
                }
                let mut capture = match capturing {
                    Some(c) if c.number != number => return Err(CAPTURE_ISOLATION),
                    Some(c) => c,
                    None if id == LEGACY => return Err(CAPTURE_UNSUPPORTED),
                    None => Capture { number, origin: false, tail: vec![], mode: 2 },
                };
                for node in nodes {
                    if !capture.tail.contains(&node) {
                        capture.tail.push(node);
                    }
                }
                self.stream(id)?.capture = Some(capture);
                Ok(())
            }
        }
    }

    /// Whether any stream captures in a mode that forbids calls such as allocating memory.
    pub fn strict_capture(&self) -> bool {
        self.streams.values().any(|s| s.capture.as_ref().is_some_and(|c| c.mode != 2))
    }
}
