//! Just enough XML for AWS's protocols: a tree to read requests from, and a writer that escapes.

use quick_xml::{Reader, escape::unescape, events::Event};

/// One element with its text and children; attributes and name spaces carry nothing we need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    pub name: String,
    pub text: String,
    pub children: Vec<Element>,
}

impl Element {
    #[must_use]
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|c| c.name == name)
    }
    #[must_use]
    pub fn value(&self, name: &str) -> Option<String> {
        self.child(name).map(|c| c.text.trim().to_owned())
    }
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |c| c.name == name)
    }
}

const DEEPEST: usize = 32;

/// # Errors
/// A sentence about what is wrong with the document.
pub fn parse(text: &str) -> Result<Element, String> {
    let mut reader = Reader::from_str(text);
    let mut open = vec![Element::default()];
    loop {
        match reader.read_event().map_err(|e| e.to_string())? {
            Event::Start(tag) => {
                if open.len() > DEEPEST {
                    return Err("nested too deeply".to_owned());
                }
                open.push(named(tag.local_name().as_ref()));
            }
            Event::Empty(tag) => add(&mut open, named(tag.local_name().as_ref())),
            Event::End(_) => {
                let done = open.pop().unwrap_or_default();
                add(&mut open, done);
            }
            Event::Text(part) => {
                let raw = part.decode().map_err(|e| e.to_string())?;
                let plain = unescape(&raw).map_err(|e| e.to_string())?;
                push_text(&mut open, &plain);
            }
            Event::GeneralRef(name) => {
                let raw = name.decode().map_err(|e| e.to_string())?;
                let plain = unescape(&format!("&{raw};")).map_err(|e| e.to_string())?.into_owned();
                push_text(&mut open, &plain);
            }
            Event::Eof => break,
            _ => {}
        }
    }
    let root = open.pop().unwrap_or_default();
    root.children.into_iter().next().ok_or_else(|| "no element in it".to_owned())
}

fn named(name: &[u8]) -> Element {
    Element { name: String::from_utf8_lossy(name).into_owned(), ..Element::default() }
}

fn add(open: &mut [Element], done: Element) {
    if let Some(parent) = open.last_mut() {
        parent.children.push(done);
    }
}

fn push_text(open: &mut [Element], text: &str) {
    if let Some(top) = open.last_mut() {
        top.text.push_str(text);
    }
}

/// `<name>text</name>`, the text escaped.
#[must_use]
pub fn tag(name: &str, text: impl std::fmt::Display) -> String {
    format!("<{name}>{}</{name}>", quick_xml::escape::escape(text.to_string().as_str()))
}

/// `<name>…</name>` around what is XML already.
#[must_use]
pub fn wrap(name: &str, inner: &str) -> String {
    format!("<{name}>{inner}</{name}>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let text = wrap("a", &(tag("b", "x < y & \"z\"") + &tag("b", "2") + "<c/>"));
        let root = parse(&text).unwrap();
        assert_eq!(root.all("b").map(|b| b.text.as_str()).collect::<Vec<_>>(), ["x < y & \"z\"", "2"]);
        assert!(root.child("c").is_some());
        assert!(parse("<a><b></a>").is_err());
        assert!(parse("").is_err());
    }
}
