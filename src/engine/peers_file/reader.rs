//! What reading one file needs, and where its faults go.

use std::ops::Range;
use std::sync::Arc;

use super::fault::{Fault, Mistake};
use super::key::Unchecked;
use super::lines::Lines;
use super::name::PeerName;
use super::secrets::Secrets;
use super::{Context, Origin, SourceFile};

/// A file that is being read.
pub struct Reader<'a, 'c> {
    pub file: &'a SourceFile,
    /// The file's name, which its peers share.
    pub name: Arc<str>,
    pub lines: Lines<'a>,
    pub context: &'a Context<'c>,
    pub secrets: &'a mut Secrets<'c>,
    pub findings: &'a mut Findings,
}

/// What all files have together.
#[derive(Default)]
pub struct Findings {
    pub faults: Vec<Fault>,
    pub keys: Vec<Unchecked>,
}

impl Reader<'_, '_> {
    /// Adds a fault of what stands at these bytes.
    pub fn fault(&mut self, at: Range<usize>, peer: Option<&PeerName>, mistake: Mistake) {
        let line = self.lines.at(at.start);
        self.fault_in_line(line, peer, mistake);
    }

    /// Adds a fault; line 0 is the whole file.
    pub fn fault_in_line(&mut self, line: usize, peer: Option<&PeerName>, mistake: Mistake) {
        let Mistake { what, todo } = mistake;
        let peers = peer.cloned().into_iter().collect();
        self.findings.faults.push(Fault { file: self.file.name.clone(), line, peers, what, todo });
    }

    /// Keeps a value, or says what is wrong with it.
    pub fn kept<T>(
        &mut self,
        at: Range<usize>,
        peer: Option<&PeerName>,
        read: Result<T, Mistake>,
    ) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(mistake) => {
                self.fault(at, peer, mistake);
                None
            }
        }
    }

    pub fn origin(&self, at: Range<usize>) -> Origin {
        Origin { file: Arc::clone(&self.name), line: self.lines.at(at.start) }
    }
}
