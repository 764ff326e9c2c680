//! Conversations as other dialects have them, made into Moondream's turns.
//!
//! Clients put a picture into one message and the question into the next, repeat roles, and send empty
//! texts; Moondream's turns alternate, and a user's turn has its pictures first.
use photon::{Message, Role};

use crate::{fields::Invalid, images::Sent};

/// A conversation in the making, with pictures in whatever form the dialect has them.
#[derive(Debug)]
pub struct Turns<P> {
    /// The turns.
    pub messages: Vec<Message>,
    /// The pictures of all turns, in order.
    pub images: Vec<P>,
}

impl<P> Default for Turns<P> {
    fn default() -> Self {
        Turns { messages: Vec::new(), images: Vec::new() }
    }
}

impl<P> Turns<P> {
    /// Adds a message. One that follows another of the same role belongs to the same turn.
    pub fn push(&mut self, role: Role, text: &str, images: Vec<P>) {
        let count = images.len();
        self.images.extend(images);
        match self.messages.last_mut() {
            Some(last) if last.role == role => {
                if !last.text.is_empty() && !text.is_empty() {
                    last.text.push('\n');
                }
                last.text.push_str(text);
                last.images += count;
            }
            _ => self.messages.push(Message { role, text: text.to_owned(), images: count }),
        }
    }

    /// What the last turn asks: its text, for skills that are no conversation.
    ///
    /// # Errors
    /// If the user says nothing.
    pub fn question(&self) -> Result<&str, Invalid> {
        let last = self.messages.iter().rev().find(|message| message.role == Role::User);
        match last {
            Some(message) => Ok(&message.text),
            None => Err(Invalid::at("messages", "there is no message of the user")),
        }
    }
}

/// What a conversation begins with, see [`photon::route_key`]: its first picture, or what the user says first.
pub(crate) fn begins_with(turns: &Turns<Sent>) -> &[u8] {
    let said = || turns.messages.iter().find(|message| message.role == Role::User);
    match turns.images.first() {
        Some(first) => first.bytes(),
        None => said().map_or(&[], |message| message.text.trim().as_bytes()),
    }
}

/// A role by its name.
///
/// # Errors
/// If there is none of that name.
pub fn role(name: &str) -> Result<Role, Invalid> {
    match name {
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "system" | "developer" => Ok(Role::System),
        other => {
            let message = format!("role {other:?} is not one of system, user and assistant");
            Err(Invalid::at("messages", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_in_one_message_belongs_to_the_question_in_the_next() {
        let mut turns = Turns::default();
        turns.push(Role::System, "be brief", vec![]);
        turns.push(Role::User, "", vec![Sent::File(vec![1])]);
        turns.push(Role::User, "what is it?", vec![]);
        turns.push(Role::Assistant, "a cat", vec![]);
        turns.push(Role::User, "and", vec![]);
        turns.push(Role::User, "this?", vec![Sent::File(vec![2])]);
        let shown: Vec<_> =
            turns.messages.iter().map(|m| (m.role, m.text.as_str(), m.images)).collect();
        let expected = [
            (Role::System, "be brief", 0),
            (Role::User, "what is it?", 1),
            (Role::Assistant, "a cat", 0),
            (Role::User, "and\nthis?", 1),
        ];
        assert_eq!(shown, expected);
        assert_eq!(turns.question().unwrap(), "and\nthis?");
        assert_eq!(turns.images.len(), 2);
        assert_eq!(begins_with(&turns), [1]);
    }

    #[test]
    fn without_a_picture_the_first_word_of_the_user_is_what_it_begins_with() {
        let mut turns = Turns::default();
        assert_eq!(begins_with(&turns), b"");
        turns.push(Role::System, "be brief", vec![]);
        turns.push(Role::User, "hello", vec![]);
        turns.push(Role::Assistant, "hi", vec![]);
        turns.push(Role::User, "who are you?", vec![]);
        assert_eq!(begins_with(&turns), b"hello");
    }
}
