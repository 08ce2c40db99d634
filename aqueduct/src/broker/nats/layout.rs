//! Where the events of a topic lie: one stream, whose subjects name the partition.

use std::fmt::Write as _;

use crate::error::BrokerError;
use crate::topic::Topic;

/// How many partitions a topic has unless it says otherwise.
pub(crate) const PARTITIONS: u32 = 16;

/// The most that a server with a consumer for each partition is asked to bear.
const PARTITIONS_MAX: u32 = 4_096;

/// Types that are longer are left out of the subject, which must fit into a line of the protocol with the topic.
const TYPE_BYTES_MAX: usize = 512;

/// The server's limit.
const STREAM_NAME_BYTES_MAX: usize = 255;

/// What stands for a type that is not known, or too long.
const NO_TYPE: &str = "_";

/// What an underscore becomes that begins a type with dots: what follows [`NO_TYPE`] is a key.
const UNDERSCORE: &str = "%5F";

/// The layout of a declared topic: the subject of an event is `<topic>.<P>.<p>.<type>`.
///
/// P, the number of partitions, is in the subject, so that the server refuses a publisher with another P. Partition p is the
/// server's own `partition(P, key)`: by the transform of [`transform`](Self::transform) a plain NATS publisher, whose key is a
/// token of the subject, lands in the same one.
#[derive(Debug)]
pub(crate) struct Layout {
    topic: Topic,
    partitions: u32,
    stream: String,
}

impl Layout {
    pub(crate) fn new(topic: &Topic, partitions: u32) -> Result<Self, BrokerError> {
        topic.check()?;
        if let Some(fault) = fault(topic.as_str()) {
            let text = format!("topic {topic:?} cannot be a NATS subject: {fault}; choose another name");
            return Err(BrokerError::Refused(text));
        }
        if !partitions.is_power_of_two() || partitions > PARTITIONS_MAX {
            let text = format!(
                "topic {topic:?} cannot have {partitions} partitions: it must be a power of two, at most {PARTITIONS_MAX}"
            );
            return Err(BrokerError::Refused(text));
        }
        Ok(Self { topic: topic.clone(), partitions, stream: stream(topic.as_str()) })
    }

    pub(crate) fn topic(&self) -> &Topic {
        &self.topic
    }

    pub(crate) fn partitions(&self) -> u32 {
        self.partitions
    }

    pub(crate) fn stream(&self) -> &str {
        &self.stream
    }

    /// A topic that is nothing but a subject, of whatever stream has it.
    pub(super) fn plain(topic: &Topic) -> Result<Self, BrokerError> {
        let layout = Self::new(topic, 1)?;
        Ok(Self { partitions: 0, stream: String::new(), ..layout })
    }

    pub(super) fn is_plain(&self) -> bool {
        self.partitions == 0
    }

    /// All subjects of the topic.
    pub(crate) fn subjects(&self) -> String {
        format!("{}.{}.*.>", self.topic, self.partitions)
    }

    /// The subjects of one partition.
    pub(crate) fn filter(&self, partition: u32) -> String {
        format!("{}.{}.{partition}.>", self.topic, self.partitions)
    }

    /// What the server is to make of subjects in which a `*` stands for the key: the subjects of events without a type, with
    /// the key as a token of its own.
    pub(crate) fn transform(&self) -> String {
        format!("{}.{P}.{{{{partition({P},1)}}}}.{NO_TYPE}.{{{{wildcard(1)}}}}", self.topic, P = self.partitions)
    }

    /// The partition of a key, by the server's hash: FNV-1a of 32 bits.
    pub(crate) fn partition(&self, key: &[u8]) -> u32 {
        if self.is_plain() {
            return 0;
        }
        let hash = key.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        hash % self.partitions
    }

    /// The subject of an event. A type keeps its dots, so that `order.placed` can be filtered by `order.*`; what is no printable
    /// ASCII character, and `*`, `>` and `%`, are percent-encoded, and so are dots that would leave a token empty. The
    /// subject's type is for filters and for eyes: it is read from the headers.
    pub(crate) fn subject(&self, partition: u32, kind: Option<&str>) -> String {
        if self.is_plain() {
            return self.topic.to_string();
        }
        let mut subject = format!("{}.{}.{partition}.", self.topic, self.partitions);
        let begin = subject.len();
        let kind = kind.unwrap_or_default();
        let dots = !kind.split('.').any(str::is_empty);
        let kind = match kind.strip_prefix("_.").filter(|_| dots) {
            Some(_) => {
                subject.push_str(UNDERSCORE);
                &kind[1..]
            }
            None => kind,
        };
        for byte in kind.bytes() {
            match byte {
                b'.' if dots => subject.push('.'),
                b'*' | b'>' | b'%' | b'.' => percent(&mut subject, &[byte]),
                byte if byte.is_ascii_graphic() => subject.push(char::from(byte)),
                byte => percent(&mut subject, &[byte]),
            }
        }
        if subject.len() == begin || subject.len() - begin > TYPE_BYTES_MAX {
            subject.truncate(begin);
            subject.push_str(NO_TYPE);
        }
        subject
    }
}

/// The key in the subject of an event that came from a plain NATS publisher through the [transform](Layout::transform).
pub(super) fn key_of<'a>(topic: &Topic, subject: &'a str) -> Option<&'a str> {
    let mut tokens = subject.strip_prefix(topic.as_str())?.strip_prefix('.')?.split('.').skip(2);
    (tokens.next()? == NO_TYPE).then_some(())?;
    tokens.next().filter(|_| tokens.next().is_none())
}

/// The name of a topic's stream: the topic's own but for what streams must not have: `.` becomes `~`, and `/`, `\`, `%` and `~` are
/// percent-encoded. No two topics share one.
fn stream(topic: &str) -> String {
    let mut name = String::with_capacity(topic.len());
    for c in topic.chars() {
        match c {
            '.' => name.push('~'),
            '/' | '\\' | '%' | '~' => percent(&mut name, c.to_string().as_bytes()),
            c => name.push(c),
        }
    }
    name
}

/// Why a topic's name is no beginning of a subject, or makes a stream's name too long.
fn fault(topic: &str) -> Option<&'static str> {
    let escaped = topic.bytes().filter(|byte| matches!(byte, b'/' | b'\\' | b'%' | b'~')).count();
    match topic {
        t if t.split('.').any(str::is_empty) => Some("a dot begins it, ends it or follows another"),
        t if t.contains(['*', '>']) => Some("`*` and `>` stand for many subjects"),
        t if t.starts_with('$') || t.starts_with("_INBOX") => Some("subjects that begin so are the server's own"),
        t if t.len() + 2 * escaped > STREAM_NAME_BYTES_MAX => Some("it has too many of `/`, `\\`, `%` and `~`"),
        _ => None,
    }
}

/// Appends bytes as `%XX`.
pub(super) fn percent(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "%{byte:02X}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(topic: &str) -> Layout {
        Layout::new(&topic.into(), PARTITIONS).unwrap()
    }

    #[test]
    fn a_subject_names_topic_partitions_partition_and_type() {
        let orders = layout("shop.orders");
        for (kind, last) in [
            (Some("order.placed"), "order.placed"),
            (None, "_"),
            (Some(""), "_"),
            (Some("a..b"), "a%2E%2Eb"),
            (Some(".a"), "%2Ea"),
            (Some("_"), "_"),
            (Some("_.a"), "%5F.a"),
            (Some("a._.b"), "a._.b"),
            (Some("a b*>%é"), "a%20b%2A%3E%25%C3%A9"),
            (Some(&"x".repeat(513)), "_"),
        ] {
            assert_eq!(orders.subject(3, kind), format!("shop.orders.16.3.{last}"));
        }
        assert_eq!((orders.subjects(), orders.filter(3)), ("shop.orders.16.*.>".into(), "shop.orders.16.3.>".into()));
    }

    #[test]
    fn a_key_in_a_subject_is_told_from_a_type() {
        let orders = layout("shop.orders");
        assert_eq!(orders.transform(), "shop.orders.16.{{partition(16,1)}}._.{{wildcard(1)}}");
        let key = |subject: &str| key_of(&"shop.orders".into(), subject).map(str::to_owned);
        assert_eq!(key("shop.orders.16.3._.order-7").as_deref(), Some("order-7"));
        for kind in [Some("_"), Some("_.a"), Some("__.a"), Some("a._"), Some("order.placed"), None] {
            assert_eq!(key(&orders.subject(3, kind)), None, "{kind:?}");
        }
    }

    #[test]
    fn no_two_topics_share_a_stream() {
        let names = ["a.b", "a~b", "a_b", "a/b", "a%2Fb", "ab"].map(|topic| layout(topic).stream);
        assert_eq!(names, ["a~b", "a%7Eb", "a_b", "a%2Fb", "a%252Fb", "ab"]);
    }

    #[test]
    fn a_topic_that_is_no_subject_says_why() {
        for (topic, why) in [
            ("a..b", "dot"),
            ("a.*", "many"),
            ("$JS.x", "server's own"),
            ("_INBOX.x", "server's own"),
            (&"%".repeat(100), "too many"),
            ("a b", "white space"),
        ] {
            let error = Layout::new(&topic.into(), 16).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        for partitions in [0, 3, 8_192] {
            let error = Layout::new(&"a".into(), partitions).unwrap_err().to_string();
            assert!(error.contains("power of two"), "{error}");
        }
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        // Published test vectors.
        let all = Layout { topic: "a".into(), partitions: 1 << 31, stream: "a".into() };
        assert_eq!(
            [b"".as_slice(), b"a", b"foobar"].map(|key| all.partition(key)),
            [0x811c_9dc5 % (1 << 31), 0xe40c_292c % (1 << 31), 0xbf9c_f968 % (1 << 31)]
        );
    }
}
