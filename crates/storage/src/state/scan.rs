//! Scans: the tree, the frozen layer and the active layer of a pinned state, merged row by row.

use std::collections::VecDeque;
use std::iter::FusedIterator;

use bytes::Bytes;

use super::delta::Layer;
use super::scan_pin::ScanPin;
use super::versions::{self, Page, Span};
use crate::error::Result;
use crate::keys::{RowKey, RowKind};

/// The rows of one kind and keyspace whose user keys are in `[start, end)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanRange {
    /// The kind of the rows.
    pub kind: RowKind,
    /// Their keyspace.
    pub keyspace: u32,
    /// The first user key; empty = from the first key of the keyspace.
    pub start: Bytes,
    /// The first user key after the range; `None` = through the last key of the keyspace.
    pub end: Option<Bytes>,
}

impl ScanRange {
    fn span(&self) -> Span {
        let low = RowKey::new(self.kind, self.keyspace, &self.start);
        let high = match &self.end {
            Some(end) => RowKey::new(self.kind, self.keyspace, end),
            None => RowKey::after_keyspace(self.kind, self.keyspace),
        };
        Span::new(low, Some(high))
    }
}

/// The sources of a scan, in the order of precedence.
#[derive(Clone, Copy, Debug)]
enum Origin {
    Active,
    Frozen,
    Tree,
}

/// One source, read a page at a time, so that a scan uses little memory and locks briefly.
#[derive(Debug)]
struct Source {
    origin: Origin,
    buffer: VecDeque<(RowKey, Option<Bytes>)>,
    /// The part of the range that has not been read yet.
    rest: Option<Span>,
}

impl Source {
    /// Reads pages until there is a row in the buffer or the range has ended.
    fn fill(&mut self, pin: &ScanPin, reverse: bool) -> Result<()> {
        while self.buffer.is_empty() {
            let Some(span) = self.rest.take() else { return Ok(()) };
            let page = self.page(pin, &span, reverse)?;
            self.buffer.extend(page.rows);
            self.rest = page.rest;
        }
        Ok(())
    }

    fn page(&self, pin: &ScanPin, span: &Span, reverse: bool) -> Result<Page> {
        let of_layer = |layer: &Layer| layer.read().page(span, pin.index().0, reverse);
        let view = pin.view();
        match self.origin {
            Origin::Active => Ok(of_layer(&view.active)),
            Origin::Frozen => Ok(view.frozen.as_deref().map(of_layer).unwrap_or_default()),
            Origin::Tree => {
                versions::page(&view.generation.tree, span, view.header.number, reverse)
            }
        }
    }
}

/// The rows of a range at a pinned index, in byte order or in reverse. It holds the pin, and at
/// most a page of each source. After an error it has ended.
#[derive(Debug)]
pub struct Scan {
    pin: ScanPin,
    reverse: bool,
    sources: [Source; 3],
}

impl Scan {
    pub(super) fn new(pin: ScanPin, range: &ScanRange, reverse: bool) -> Scan {
        Scan::over(pin, &range.span(), reverse)
    }

    /// All rows of a kind, over all keyspaces.
    pub(super) fn of_kind(pin: ScanPin, kind: RowKind) -> Scan {
        let span = Span::new(RowKey::new(kind, 0, b""), Some(RowKey::after_kind(kind)));
        Scan::over(pin, &span, false)
    }

    fn over(pin: ScanPin, span: &Span, reverse: bool) -> Scan {
        let sources = [Origin::Active, Origin::Frozen, Origin::Tree].map(|origin| Source {
            origin,
            buffer: VecDeque::new(),
            rest: Some(span.clone()),
        });
        Scan { pin, reverse, sources }
    }

    fn step(&mut self) -> Result<Option<(RowKey, Bytes)>> {
        loop {
            for source in &mut self.sources {
                source.fill(&self.pin, self.reverse)?;
            }
            let heads = self.sources.iter().filter_map(|source| source.buffer.front());
            let keys = heads.map(|(key, _)| key);
            let next = if self.reverse { keys.max() } else { keys.min() };
            let Some(next) = next.cloned() else { return Ok(None) };
            // The first source that has the row decides its record; the others are skipped.
            let mut record = None;
            for source in &mut self.sources {
                if source.buffer.front().is_some_and(|(key, _)| *key == next) {
                    let here = source.buffer.pop_front().and_then(|(_, record)| record);
                    record.get_or_insert(here);
                }
            }
            if let Some(record) = record.flatten() {
                return Ok(Some((next, record)));
            }
        }
    }
}

impl Iterator for Scan {
    type Item = Result<(RowKey, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if !matches!(step, Ok(Some(_))) {
            for source in &mut self.sources {
                source.buffer.clear();
                source.rest = None;
            }
        }
        step.transpose()
    }
}

impl FusedIterator for Scan {}

impl ScanPin {
    /// The rows of a range at the pinned index, in byte order, or from the end if `reverse`. Each
    /// step may wait for the disk.
    #[must_use]
    pub fn scan(&self, range: &ScanRange, reverse: bool) -> Scan {
        Scan::new(self.clone(), range, reverse)
    }
}
