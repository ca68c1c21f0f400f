"""Chats about code: a request, then one sentence and a short snippet. Mostly Python; HTML, JSON, shell and SQL too.

In the texts below a snippet follows its heading: what it is for, and the sentence that goes with it.

    python demo/snippets.py        prints a sample
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

PYTHON = r"""
@ add two numbers | This function adds two numbers.
def add(a, b):
    return a + b
@ subtract one number from another | This function takes b away from a.
def subtract(a, b):
    return a - b
@ multiply two numbers | This function multiplies two numbers.
def multiply(a, b):
    return a * b
@ divide two numbers safely | This function divides a by b, and returns None if b is zero.
def divide(a, b):
    if b == 0:
        return None
    return a / b
@ find the bigger of two numbers | This function returns the bigger number.
def bigger(a, b):
    return max(a, b)
@ check if a number is even | A number is even if nothing is left over when you divide it by two.
def is_even(n):
    return n % 2 == 0
@ check if a number is odd | A number is odd if one is left over when you divide it by two.
def is_odd(n):
    return n % 2 == 1
@ square a number | This function multiplies a number by itself.
def square(n):
    return n * n
@ add up a list of numbers | This function goes through the list and adds each number.
def total(numbers):
    result = 0
    for n in numbers:
        result += n
    return result
@ find the average of a list | The average is the sum divided by how many numbers there are.
def average(numbers):
    return sum(numbers) / len(numbers)
@ find the largest number in a list | The max function returns the largest number.
def largest(numbers):
    return max(numbers)
@ find the smallest number in a list | The min function returns the smallest number.
def smallest(numbers):
    return min(numbers)
@ count the items in a list | The len function tells how many items there are.
def count_items(items):
    return len(items)
@ reverse a list | This function returns the list from back to front.
def reverse_list(items):
    return items[::-1]
@ sort a list | The sorted function returns the items in order.
def sort_list(items):
    return sorted(items)
@ remove duplicates from a list | This function keeps the first of each item.
def unique(items):
    return list(dict.fromkeys(items))
@ get the first item of a list | Counting starts at zero, so the first item is number 0.
def first(items):
    return items[0]
@ get the last item of a list | The number -1 means the last item.
def last(items):
    return items[-1]
@ check if an item is in a list | The word in checks if the list has the item.
def contains(items, item):
    return item in items
@ double every number in a list | This function makes a new list with each number doubled.
def double_all(numbers):
    return [2 * n for n in numbers]
@ keep only the even numbers of a list | This function keeps a number if it is even.
def only_even(numbers):
    return [n for n in numbers if n % 2 == 0]
@ join two lists | The plus sign joins two lists.
def join_lists(a, b):
    return a + b
@ reverse a string | This function returns the text from back to front.
def reverse_string(text):
    return text[::-1]
@ check if a word is a palindrome | A palindrome reads the same from both sides.
def is_palindrome(word):
    return word == word[::-1]
@ count the vowels in a string | This function counts the letters a, e, i, o and u.
def count_vowels(text):
    return sum(letter in "aeiou" for letter in text.lower())
@ count the words in a sentence | This function splits the text at its spaces and counts the parts.
def count_words(text):
    return len(text.split())
@ make a text upper case | The upper method makes every letter a capital.
def shout(text):
    return text.upper()
@ make a text lower case | The lower method makes every letter small.
def whisper(text):
    return text.lower()
@ make the first letter of a text a capital | This function changes the first letter and keeps the rest.
def capital(text):
    return text[:1].upper() + text[1:]
@ count how often a letter is in a word | The count method counts a letter.
def count_letter(word, letter):
    return word.count(letter)
@ replace a word in a text | The replace method puts the new word where the old one was.
def replace_word(text, old, new):
    return text.replace(old, new)
@ split a sentence into words | The split method cuts the text at its spaces.
def words(text):
    return text.split()
@ join words with commas | The join method puts a comma between the words.
def with_commas(words):
    return ", ".join(words)
@ find the length of a string | The len function counts the letters.
def length(text):
    return len(text)
@ say hello to someone | This function puts the name into a greeting.
def hello(name):
    return f"Hello, {name}!"
@ print the numbers from one to ten | The range stops before 11.
def print_numbers():
    for i in range(1, 11):
        print(i)
@ count down to zero | The range goes down in steps of one.
def count_down(start):
    for i in range(start, -1, -1):
        print(i)
@ find the factorial of a number | The factorial is the product of all numbers up to n.
def factorial(n):
    result = 1
    for i in range(2, n + 1):
        result *= i
    return result
@ find a Fibonacci number | Each Fibonacci number is the sum of the two before it.
def fibonacci(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
@ check if a number is prime | A prime number can only be divided by one and itself.
def is_prime(n):
    if n < 2:
        return False
    for i in range(2, n):
        if n % i == 0:
            return False
    return True
@ find the greatest common divisor | This function uses the rule of Euclid.
def gcd(a, b):
    while b:
        a, b = b, a % b
    return a
@ raise a number to a power | Two stars mean "to the power of".
def power(base, exponent):
    return base ** exponent
@ turn Celsius into Fahrenheit | Multiply by nine, divide by five and add 32.
def to_fahrenheit(celsius):
    return celsius * 9 / 5 + 32
@ turn Fahrenheit into Celsius | Take away 32, multiply by five and divide by nine.
def to_celsius(fahrenheit):
    return (fahrenheit - 32) * 5 / 9
@ find the area of a rectangle | The area is the width times the height.
def area(width, height):
    return width * height
@ find the area of a circle | The area is pi times the radius squared.
import math

def circle_area(radius):
    return math.pi * radius ** 2
@ round a number to two decimals | The round function takes how many decimals to keep.
def round_two(n):
    return round(n, 2)
@ roll a die | The random module picks a number from one to six.
import random

def roll():
    return random.randint(1, 6)
@ pick a random item from a list | The choice function picks one item.
import random

def pick(items):
    return random.choice(items)
@ read a text file | This function opens the file and returns its text.
def read_file(path):
    with open(path) as file:
        return file.read()
@ write a text to a file | The letter w means that the file is opened for writing.
def write_file(path, text):
    with open(path, "w") as file:
        file.write(text)
@ count how often each word is in a text | This function keeps a count for each word.
def word_counts(text):
    counts = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    return counts
@ look up a key in a dictionary | The get method returns the value, or the default if the key is missing.
def look_up(data, key, default=None):
    return data.get(key, default)
@ swap two values | Python can return both values in the other order.
def swap(a, b):
    return b, a
@ turn a text into a whole number | The int function makes a number out of digits.
def to_number(text):
    return int(text)
@ turn a number into a text | The str function makes a text out of a number.
def to_text(n):
    return str(n)
@ get the date of today | The date class knows the date of today.
from datetime import date

def today():
    return date.today()
@ wait for some seconds | The sleep function waits.
import time

def wait(seconds):
    time.sleep(seconds)
@ play FizzBuzz with one number | This function checks for 15 first, then for three and five.
def fizzbuzz(n):
    if n % 15 == 0:
        return "FizzBuzz"
    if n % 3 == 0:
        return "Fizz"
    if n % 5 == 0:
        return "Buzz"
    return str(n)
@ make a simple class for a dog | Each dog has a name and can bark.
class Dog:
    def __init__(self, name):
        self.name = name

    def bark(self):
        return f"{self.name} says woof!"
"""
HTML = """
@ make a big heading | The h1 tag makes a big heading.
<h1>Welcome</h1>
@ write a paragraph | The p tag makes a paragraph.
<p>This is a paragraph.</p>
@ make a link | The a tag makes a link, and href holds the address.
<a href="https://example.com">Visit the page</a>
@ make a list | The ul tag makes a list, and each li tag is one item.
<ul>
  <li>Apples</li>
  <li>Bread</li>
</ul>
@ show a picture | The img tag shows a picture, and alt says what is in it.
<img src="cat.jpg" alt="A black cat">
@ make a button | The button tag makes a button.
<button>Click me</button>
@ make bold text | The strong tag makes text bold.
<strong>Very important</strong>
@ make a simple page | This is a small page with a title and a heading.
<!DOCTYPE html>
<html>
  <head><title>My page</title></head>
  <body><h1>Hello!</h1></body>
</html>
"""
JSON = """
@ describe a person | This object holds a name and an age.
{"name": "Anna", "age": 30}
@ hold a list of colors | Square brackets hold a list.
["red", "green", "blue"]
@ describe a book | This object holds the title and the number of pages.
{"title": "The Red Kite", "pages": 120}
@ describe a pet and its owner | One object can hold another object.
{"pet": "cat", "owner": {"name": "Tom"}}
@ hold a yes or no value | The values true and false have no quotes.
{"open": true, "full": false}
"""
SHELL = """
@ list the files in a folder | The ls command lists files.
ls -l
@ make a new folder | The mkdir command makes a folder.
mkdir photos
@ copy a file | The cp command copies a file.
cp notes.txt copy.txt
@ rename a file | The mv command moves or renames a file.
mv old.txt new.txt
@ show what is in a file | The cat command shows the text of a file.
cat notes.txt
@ find a word in a file | The grep command shows the lines that have the word.
grep "apple" notes.txt
@ see which folder I am in | The pwd command shows the folder you are in.
pwd
@ count the lines of a file | The wc command counts, and -l means lines.
wc -l notes.txt
"""
SQL = """
@ get all rows of a table | The star means all columns.
SELECT * FROM users;
@ get the users who are older than 18 | The WHERE part keeps the rows you want.
SELECT name FROM users WHERE age > 18;
@ count the rows of a table | The COUNT function counts the rows.
SELECT COUNT(*) FROM users;
@ sort users by name | The ORDER BY part sorts the rows.
SELECT * FROM users ORDER BY name;
@ add a row to a table | The INSERT command adds a row.
INSERT INTO users (name, age) VALUES ('Anna', 30);
@ change the age of a user | The UPDATE command changes rows, and WHERE says which ones.
UPDATE users SET age = 31 WHERE name = 'Anna';
@ find the average age of the users | The AVG function finds the average.
SELECT AVG(age) FROM users;
"""
COMMON = ("How do I {} in {name}?", "How can I {} in {name}?", "Show me how to {} in {name}.")
REQUESTS = {
    "python": (
        *COMMON,
        "Write a Python function to {}.",
        "Can you write a Python function to {}?",
        "Please write Python code to {}.",
        "I need a Python function to {}.",
        "Write some code to {}.",
    ),
    "html": (*COMMON, "Write HTML to {}.", "What is the HTML to {}?"),
    "json": (*COMMON, "Write JSON to {}.", "Give me some JSON to {}."),
    "shell": (*COMMON, "Write a shell command to {}.", "What is the shell command to {}?"),
    "sql": (*COMMON, "Write an SQL query to {}.", "What is the SQL to {}?"),
}
NAMES = {"python": "Python", "html": "HTML", "json": "JSON", "shell": "the shell", "sql": "SQL"}
FENCES = {"shell": "bash"}


@dataclass(frozen=True)
class Snippet:
    """Code for a task, with the sentence that goes before it."""

    language: str
    task: str
    sentence: str
    code: str

    @property
    def answer(self) -> str:
        return f"{self.sentence}\n\n```{FENCES.get(self.language, self.language)}\n{self.code}\n```"

    def requests(self) -> list[str]:
        """The ways to ask for it; a class is not asked for as a function."""
        forms = [f for f in REQUESTS[self.language] if "function" not in f or not self.code.startswith("class")]
        return [form.format(self.task, name=NAMES[self.language]) for form in forms]


def parse(language: str, text: str) -> list[Snippet]:
    found = []
    for block in text.strip().removeprefix("@ ").split("\n@ "):
        heading, code = block.split("\n", 1)
        task, sentence = heading.split(" | ")
        found.append(Snippet(language, task, sentence, code.rstrip()))
    return found


TEXTS = {"python": PYTHON, "html": HTML, "json": JSON, "shell": SHELL, "sql": SQL}
SNIPPETS = [snippet for language, text in TEXTS.items() for snippet in parse(language, text)]


def documents(rng: random.Random, ways: int = 6) -> Iterator[dict]:
    """Each snippet asked for in up to `ways` ways; about a fifth of the chats ask for another one before."""
    for snippet in SNIPPETS:
        requests = snippet.requests()
        for request in rng.sample(requests, min(ways, len(requests))):
            turns = [(request, snippet.answer)]
            if rng.random() < 0.2:
                other = rng.choice([s for s in SNIPPETS if s != snippet and s.language == snippet.language])
                turns.insert(0, (rng.choice(other.requests()), other.answer))
            messages = []
            for asked, answer in turns:
                messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            yield {"messages": messages, "topic": snippet.language, "kind": "code"}


if __name__ == "__main__":
    found = list(documents(random.Random(0)))
    print(len(SNIPPETS), "snippets,", len(found), "documents")
    for document in random.Random(1).sample(found, 12):
        print(json.dumps(document))
