"""Chats about and in Spanish, French and German: words, phrases, and short talks wholly in the language.

The tables hold the same word, phrase or exchange in English and the three languages, in that order. A noun
has its article in the three languages. An English question is answered in another language only when asked
for, by a system message or in the question.

    python demo/languages.py        prints a sample
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

LANGUAGES = ("Spanish", "French", "German")
OWN_WORDS = {"Spanish": "Responde en español.", "French": "Réponds en français.", "German": "Antworte auf Deutsch."}
WORDS = """
dog|el perro|le chien|der Hund ; cat|el gato|le chat|die Katze ; bird|el pájaro|l'oiseau|der Vogel
horse|el caballo|le cheval|das Pferd ; cow|la vaca|la vache|die Kuh ; pig|el cerdo|le cochon|das Schwein
fish|el pez|le poisson|der Fisch ; mouse|el ratón|la souris|die Maus ; rabbit|el conejo|le lapin|das Kaninchen
bear|el oso|l'ours|der Bär ; house|la casa|la maison|das Haus ; door|la puerta|la porte|die Tür
window|la ventana|la fenêtre|das Fenster ; table|la mesa|la table|der Tisch ; chair|la silla|la chaise|der Stuhl
bed|la cama|le lit|das Bett ; kitchen|la cocina|la cuisine|die Küche ; garden|el jardín|le jardin|der Garten
room|la habitación|la pièce|das Zimmer ; bread|el pan|le pain|das Brot ; water|el agua|l'eau|das Wasser
milk|la leche|le lait|die Milch ; coffee|el café|le café|der Kaffee ; tea|el té|le thé|der Tee
apple|la manzana|la pomme|der Apfel ; banana|el plátano|la banane|die Banane ; cheese|el queso|le fromage|der Käse
egg|el huevo|l'œuf|das Ei ; meat|la carne|la viande|das Fleisch ; rice|el arroz|le riz|der Reis
soup|la sopa|la soupe|die Suppe ; sugar|el azúcar|le sucre|der Zucker ; salt|la sal|le sel|das Salz
cake|el pastel|le gâteau|der Kuchen ; man|el hombre|l'homme|der Mann ; woman|la mujer|la femme|die Frau
boy|el niño|le garçon|der Junge ; girl|la niña|la fille|das Mädchen ; baby|el bebé|le bébé|das Baby
mother|la madre|la mère|die Mutter ; father|el padre|le père|der Vater ; brother|el hermano|le frère|der Bruder
sister|la hermana|la sœur|die Schwester ; friend|el amigo|l'ami|der Freund ; family|la familia|la famille|die Familie
teacher|el maestro|le professeur|der Lehrer ; doctor|el médico|le médecin|der Arzt ; king|el rey|le roi|der König
queen|la reina|la reine|die Königin ; school|la escuela|l'école|die Schule ; book|el libro|le livre|das Buch
letter|la carta|la lettre|der Brief ; pencil|el lápiz|le crayon|der Bleistift ; paper|el papel|le papier|das Papier
question|la pregunta|la question|die Frage ; answer|la respuesta|la réponse|die Antwort
word|la palabra|le mot|das Wort ; city|la ciudad|la ville|die Stadt ; street|la calle|la rue|die Straße
bridge|el puente|le pont|die Brücke ; car|el coche|la voiture|das Auto ; train|el tren|le train|der Zug
bus|el autobús|le bus|der Bus ; airplane|el avión|l'avion|das Flugzeug ; bicycle|la bicicleta|le vélo|das Fahrrad
boat|el barco|le bateau|das Boot ; shop|la tienda|le magasin|der Laden ; money|el dinero|l'argent|das Geld
sun|el sol|le soleil|die Sonne ; moon|la luna|la lune|der Mond ; star|la estrella|l'étoile|der Stern
sky|el cielo|le ciel|der Himmel ; rain|la lluvia|la pluie|der Regen ; snow|la nieve|la neige|der Schnee
wind|el viento|le vent|der Wind ; tree|el árbol|l'arbre|der Baum ; flower|la flor|la fleur|die Blume
sea|el mar|la mer|das Meer ; river|el río|la rivière|der Fluss ; mountain|la montaña|la montagne|der Berg
forest|el bosque|la forêt|der Wald ; beach|la playa|la plage|der Strand ; fire|el fuego|le feu|das Feuer
day|el día|le jour|der Tag ; night|la noche|la nuit|die Nacht ; morning|la mañana|le matin|der Morgen
week|la semana|la semaine|die Woche ; month|el mes|le mois|der Monat ; year|el año|l'année|das Jahr
hour|la hora|l'heure|die Stunde ; summer|el verano|l'été|der Sommer ; winter|el invierno|l'hiver|der Winter
spring|la primavera|le printemps|der Frühling ; head|la cabeza|la tête|der Kopf ; hand|la mano|la main|die Hand
foot|el pie|le pied|der Fuß ; eye|el ojo|l'œil|das Auge ; ear|la oreja|l'oreille|das Ohr ; nose|la nariz|le nez|die Nase
mouth|la boca|la bouche|der Mund ; heart|el corazón|le cœur|das Herz ; shoe|el zapato|la chaussure|der Schuh
hat|el sombrero|le chapeau|der Hut ; shirt|la camisa|la chemise|das Hemd ; dress|el vestido|la robe|das Kleid
game|el juego|le jeu|das Spiel ; ball|la pelota|la balle|der Ball ; song|la canción|la chanson|das Lied
music|la música|la musique|die Musik ; story|el cuento|l'histoire|die Geschichte ; dream|el sueño|le rêve|der Traum
name|el nombre|le nom|der Name ; work|el trabajo|le travail|die Arbeit ; key|la llave|la clé|der Schlüssel
clock|el reloj|l'horloge|die Uhr ; big|grande|grand|groß ; small|pequeño|petit|klein ; good|bueno|bon|gut
bad|malo|mauvais|schlecht ; new|nuevo|nouveau|neu ; old|viejo|vieux|alt ; hot|caliente|chaud|heiß ; cold|frío|froid|kalt
beautiful|hermoso|beau|schön ; happy|feliz|heureux|glücklich ; sad|triste|triste|traurig ; red|rojo|rouge|rot
blue|azul|bleu|blau ; green|verde|vert|grün ; yellow|amarillo|jaune|gelb ; white|blanco|blanc|weiß
black|negro|noir|schwarz ; to eat|comer|manger|essen ; to drink|beber|boire|trinken ; to sleep|dormir|dormir|schlafen
to read|leer|lire|lesen ; to write|escribir|écrire|schreiben ; to sing|cantar|chanter|singen
to play|jugar|jouer|spielen ; to run|correr|courir|laufen ; to swim|nadar|nager|schwimmen ; one|uno|un|eins
two|dos|deux|zwei ; three|tres|trois|drei ; four|cuatro|quatre|vier ; five|cinco|cinq|fünf ; six|seis|six|sechs
seven|siete|sept|sieben ; eight|ocho|huit|acht ; nine|nueve|neuf|neun ; ten|diez|dix|zehn ; today|hoy|aujourd'hui|heute
tomorrow|mañana|demain|morgen ; yesterday|ayer|hier|gestern ; yes|sí|oui|ja ; no|no|non|nein
always|siempre|toujours|immer ; here|aquí|ici|hier
"""
PHRASES = """
Hi!|¡Hola!|Salut !|Hallo! ; Good morning.|Buenos días.|Bonjour.|Guten Morgen.
Good night.|Buenas noches.|Bonne nuit.|Gute Nacht. ; Goodbye.|Adiós.|Au revoir.|Auf Wiedersehen.
See you tomorrow.|Hasta mañana.|À demain.|Bis morgen. ; See you soon.|Hasta pronto.|À bientôt.|Bis bald.
Please.|Por favor.|S'il vous plaît.|Bitte. ; Thank you.|Gracias.|Merci.|Danke.
Thank you very much.|Muchas gracias.|Merci beaucoup.|Vielen Dank. ; You're welcome.|De nada.|De rien.|Gern geschehen.
I'm sorry.|Lo siento.|Je suis désolé.|Es tut mir leid. ; Excuse me.|Disculpe.|Excusez-moi.|Entschuldigung.
How are you?|¿Cómo estás?|Comment vas-tu ?|Wie geht es dir? ; I'm fine.|Estoy bien.|Je vais bien.|Mir geht es gut.
What is your name?|¿Cómo te llamas?|Comment t'appelles-tu ?|Wie heißt du?
My name is Anna.|Me llamo Anna.|Je m'appelle Anna.|Ich heiße Anna.
Where do you live?|¿Dónde vives?|Où habites-tu ?|Wo wohnst du?
How old are you?|¿Cuántos años tienes?|Quel âge as-tu ?|Wie alt bist du?
I am ten years old.|Tengo diez años.|J'ai dix ans.|Ich bin zehn Jahre alt.
Where is the station?|¿Dónde está la estación?|Où est la gare ?|Wo ist der Bahnhof?
Where is the bathroom?|¿Dónde está el baño?|Où sont les toilettes ?|Wo ist die Toilette?
What time is it?|¿Qué hora es?|Quelle heure est-il ?|Wie spät ist es?
How much does it cost?|¿Cuánto cuesta?|Combien ça coûte ?|Wie viel kostet das?
I would like a coffee.|Quisiera un café.|Je voudrais un café.|Ich möchte einen Kaffee.
I like music.|Me gusta la música.|J'aime la musique.|Ich mag Musik.
I like to read.|Me gusta leer.|J'aime lire.|Ich lese gern. ; I love you.|Te quiero.|Je t'aime.|Ich liebe dich.
I am hungry.|Tengo hambre.|J'ai faim.|Ich habe Hunger. ; I am thirsty.|Tengo sed.|J'ai soif.|Ich habe Durst.
I am tired.|Estoy cansado.|Je suis fatigué.|Ich bin müde. ; I am happy.|Estoy feliz.|Je suis heureux.|Ich bin glücklich.
I don't know.|No lo sé.|Je ne sais pas.|Ich weiß es nicht.
I don't understand.|No entiendo.|Je ne comprends pas.|Ich verstehe nicht.
Do you speak English?|¿Hablas inglés?|Parles-tu anglais ?|Sprichst du Englisch?
Can you help me?|¿Puedes ayudarme?|Peux-tu m'aider ?|Kannst du mir helfen?
What is this?|¿Qué es esto?|Qu'est-ce que c'est ?|Was ist das?
Happy birthday!|¡Feliz cumpleaños!|Joyeux anniversaire !|Alles Gute zum Geburtstag!
Have a good trip!|¡Buen viaje!|Bon voyage !|Gute Reise! ; Enjoy your meal!|¡Buen provecho!|Bon appétit !|Guten Appetit!
Welcome!|¡Bienvenido!|Bienvenue !|Willkommen! ; Good luck!|¡Buena suerte!|Bonne chance !|Viel Glück!
It is cold today.|Hoy hace frío.|Il fait froid aujourd'hui.|Heute ist es kalt.
The weather is nice.|Hace buen tiempo.|Il fait beau.|Das Wetter ist schön.
The dog is big.|El perro es grande.|Le chien est grand.|Der Hund ist groß.
The cat is sleeping.|El gato duerme.|Le chat dort.|Die Katze schläft.
I have a brother.|Tengo un hermano.|J'ai un frère.|Ich habe einen Bruder. ; Let's go!|¡Vamos!|Allons-y !|Gehen wir!
One moment.|Un momento.|Un moment.|Einen Moment.
"""
EXCHANGES = """
Hello, how are you?|I am well, thank you. How can I help you?
Hola, ¿cómo estás?|Estoy bien, gracias. ¿En qué puedo ayudarte?
Bonjour, comment vas-tu ?|Je vais bien, merci. Comment puis-je t'aider ?
Hallo, wie geht es dir?|Mir geht es gut, danke. Wie kann ich dir helfen?
Who are you?|I am a small chat program.
¿Quién eres?|Soy un pequeño programa de chat.
Qui es-tu ?|Je suis un petit programme de discussion.
Wer bist du?|Ich bin ein kleines Chatprogramm.
Are you a person?|No, I am a computer program.
¿Eres una persona?|No, soy un programa de computadora.
Es-tu une personne ?|Non, je suis un programme informatique.
Bist du ein Mensch?|Nein, ich bin ein Computerprogramm.
What is the capital of Spain?|The capital of Spain is Madrid.
¿Cuál es la capital de España?|La capital de España es Madrid.
Quelle est la capitale de l'Espagne ?|La capitale de l'Espagne est Madrid.
Was ist die Hauptstadt von Spanien?|Die Hauptstadt von Spanien ist Madrid.
What is the capital of France?|The capital of France is Paris.
¿Cuál es la capital de Francia?|La capital de Francia es París.
Quelle est la capitale de la France ?|La capitale de la France est Paris.
Was ist die Hauptstadt von Frankreich?|Die Hauptstadt von Frankreich ist Paris.
What is the capital of Germany?|The capital of Germany is Berlin.
¿Cuál es la capital de Alemania?|La capital de Alemania es Berlín.
Quelle est la capitale de l'Allemagne ?|La capitale de l'Allemagne est Berlin.
Was ist die Hauptstadt von Deutschland?|Die Hauptstadt von Deutschland ist Berlin.
What color is the sky?|On a clear day, the sky is blue.
¿De qué color es el cielo?|En un día claro, el cielo es azul.
De quelle couleur est le ciel ?|Par beau temps, le ciel est bleu.
Welche Farbe hat der Himmel?|An einem klaren Tag ist der Himmel blau.
What color is grass?|Grass is green.
¿De qué color es la hierba?|La hierba es verde.
De quelle couleur est l'herbe ?|L'herbe est verte.
Welche Farbe hat Gras?|Gras ist grün.
How many days are in a week?|There are seven days in a week.
¿Cuántos días tiene una semana?|Una semana tiene siete días.
Combien de jours y a-t-il dans une semaine ?|Il y a sept jours dans une semaine.
Wie viele Tage hat eine Woche?|Eine Woche hat sieben Tage.
How many months are in a year?|There are twelve months in a year.
¿Cuántos meses tiene un año?|Un año tiene doce meses.
Combien de mois y a-t-il dans une année ?|Il y a douze mois dans une année.
Wie viele Monate hat ein Jahr?|Ein Jahr hat zwölf Monate.
How much is two plus three?|Two plus three is five.
¿Cuánto es dos más tres?|Dos más tres son cinco.
Combien font deux plus trois ?|Deux plus trois font cinq.
Wie viel ist zwei plus drei?|Zwei plus drei ist fünf.
What does a cow eat?|A cow eats grass and hay.
¿Qué come una vaca?|Una vaca come hierba y heno.
Que mange une vache ?|Une vache mange de l'herbe et du foin.
Was frisst eine Kuh?|Eine Kuh frisst Gras und Heu.
Where do fish live?|Fish live in water.
¿Dónde viven los peces?|Los peces viven en el agua.
Où vivent les poissons ?|Les poissons vivent dans l'eau.
Wo leben Fische?|Fische leben im Wasser.
Can birds fly?|Yes, most birds can fly.
¿Pueden volar los pájaros?|Sí, la mayoría de los pájaros pueden volar.
Les oiseaux peuvent-ils voler ?|Oui, la plupart des oiseaux peuvent voler.
Können Vögel fliegen?|Ja, die meisten Vögel können fliegen.
Which is bigger, a mouse or a horse?|A horse is bigger than a mouse.
¿Qué es más grande, un ratón o un caballo?|Un caballo es más grande que un ratón.
Quel animal est plus grand, une souris ou un cheval ?|Un cheval est plus grand qu'une souris.
Was ist größer, eine Maus oder ein Pferd?|Ein Pferd ist größer als eine Maus.
What is bread made of?|Bread is made of flour, water and salt.
¿De qué está hecho el pan?|El pan está hecho de harina, agua y sal.
De quoi est fait le pain ?|Le pain est fait de farine, d'eau et de sel.
Woraus besteht Brot?|Brot besteht aus Mehl, Wasser und Salz.
What can I eat for breakfast?|You can eat bread with butter and an apple.
¿Qué puedo comer en el desayuno?|Puedes comer pan con mantequilla y una manzana.
Que puis-je manger au petit déjeuner ?|Tu peux manger du pain avec du beurre et une pomme.
Was kann ich zum Frühstück essen?|Du kannst Brot mit Butter und einen Apfel essen.
How do I make tea?|Boil water and pour it over the tea. Wait three minutes.
¿Cómo preparo un té?|Hierve agua y viértela sobre el té. Espera tres minutos.
Comment faire du thé ?|Fais bouillir de l'eau et verse-la sur le thé. Attends trois minutes.
Wie mache ich Tee?|Koche Wasser und gieße es über den Tee. Warte drei Minuten.
What is an apple?|An apple is a round, sweet fruit.
¿Qué es una manzana?|Una manzana es una fruta redonda y dulce.
Qu'est-ce qu'une pomme ?|Une pomme est un fruit rond et sucré.
Was ist ein Apfel?|Ein Apfel ist eine runde, süße Frucht.
I am hungry.|Then eat something good, for example a soup.
Tengo hambre.|Entonces come algo rico, por ejemplo una sopa.
J'ai faim.|Alors mange quelque chose de bon, par exemple une soupe.
Ich habe Hunger.|Dann iss etwas Gutes, zum Beispiel eine Suppe.
I am tired.|Then rest a little. Good night!
Estoy cansado.|Entonces descansa un poco. ¡Buenas noches!
Je suis fatigué.|Alors repose-toi un peu. Bonne nuit !
Ich bin müde.|Dann ruh dich ein wenig aus. Gute Nacht!
I am sad today.|I am sorry. Do you want to tell me why?
Hoy estoy triste.|Lo siento mucho. ¿Quieres contarme por qué?
Je suis triste aujourd'hui.|J'en suis désolé. Veux-tu me dire pourquoi ?
Ich bin heute traurig.|Das tut mir leid. Möchtest du mir sagen, warum?
Today is my birthday!|Happy birthday! I wish you a beautiful day.
¡Hoy es mi cumpleaños!|¡Feliz cumpleaños! Te deseo un día muy bonito.
C'est mon anniversaire aujourd'hui !|Joyeux anniversaire ! Je te souhaite une belle journée.
Heute ist mein Geburtstag!|Alles Gute zum Geburtstag! Ich wünsche dir einen schönen Tag.
Thank you for your help.|You're welcome.
Gracias por tu ayuda.|De nada.
Merci pour ton aide.|De rien.
Danke für deine Hilfe.|Gern geschehen.
Can you help me?|Yes, gladly. What do you need?
¿Puedes ayudarme?|Sí, con gusto. ¿Qué necesitas?
Peux-tu m'aider ?|Oui, volontiers. De quoi as-tu besoin ?
Kannst du mir helfen?|Ja, gern. Was brauchst du?
What is the opposite of big?|The opposite of big is small.
¿Cuál es el contrario de grande?|El contrario de grande es pequeño.
Quel est le contraire de grand ?|Le contraire de grand est petit.
Was ist das Gegenteil von groß?|Das Gegenteil von groß ist klein.
Which day comes after Monday?|Tuesday comes after Monday.
¿Qué día viene después del lunes?|Después del lunes viene el martes.
Quel jour vient après lundi ?|Après lundi vient mardi.
Welcher Tag kommt nach Montag?|Nach Montag kommt Dienstag.
What are the four seasons?|The four seasons are spring, summer, fall and winter.
¿Cuáles son las cuatro estaciones?|Las cuatro estaciones son la primavera, el verano, el otoño y el invierno.
Quelles sont les quatre saisons ?|Les quatre saisons sont le printemps, l'été, l'automne et l'hiver.
Was sind die vier Jahreszeiten?|Die vier Jahreszeiten sind Frühling, Sommer, Herbst und Winter.
When does it snow?|It snows in winter, when it is very cold.
¿Cuándo nieva?|Nieva en invierno, cuando hace mucho frío.
Quand neige-t-il ?|Il neige en hiver, quand il fait très froid.
Wann schneit es?|Es schneit im Winter, wenn es sehr kalt ist.
What do I need when it rains?|When it rains, you need an umbrella.
¿Qué necesito cuando llueve?|Cuando llueve, necesitas un paraguas.
De quoi ai-je besoin quand il pleut ?|Quand il pleut, tu as besoin d'un parapluie.
Was brauche ich, wenn es regnet?|Wenn es regnet, brauchst du einen Regenschirm.
Is the sun hot?|Yes, the sun is very hot.
¿Está caliente el sol?|Sí, el sol está muy caliente.
Le soleil est-il chaud ?|Oui, le soleil est très chaud.
Ist die Sonne heiß?|Ja, die Sonne ist sehr heiß.
Where can I buy bread?|You can buy bread at the bakery.
¿Dónde puedo comprar pan?|Puedes comprar pan en la panadería.
Où puis-je acheter du pain ?|Tu peux acheter du pain à la boulangerie.
Wo kann ich Brot kaufen?|Brot kannst du in der Bäckerei kaufen.
Where can I read many books?|You can read many books in the library.
¿Dónde puedo leer muchos libros?|Puedes leer muchos libros en la biblioteca.
Où puis-je lire beaucoup de livres ?|Tu peux lire beaucoup de livres à la bibliothèque.
Wo kann ich viele Bücher lesen?|In der Bibliothek kannst du viele Bücher lesen.
What does a doctor do?|A doctor helps sick people.
¿Qué hace un médico?|Un médico ayuda a las personas enfermas.
Que fait un médecin ?|Un médecin aide les personnes malades.
Was macht ein Arzt?|Ein Arzt hilft kranken Menschen.
What does a teacher do?|A teacher helps children to learn.
¿Qué hace un maestro?|Un maestro ayuda a los niños a aprender.
Que fait un professeur ?|Un professeur aide les enfants à apprendre.
Was macht ein Lehrer?|Ein Lehrer hilft Kindern beim Lernen.
How can I sleep well?|Go to bed early and read a quiet book.
¿Cómo puedo dormir bien?|Acuéstate temprano y lee un libro tranquilo.
Comment bien dormir ?|Couche-toi tôt et lis un livre calme.
Wie kann ich gut schlafen?|Geh früh ins Bett und lies ein ruhiges Buch.
How can I learn a language?|Practice a little every day and speak with other people.
¿Cómo puedo aprender un idioma?|Practica un poco cada día y habla con otras personas.
Comment puis-je apprendre une langue ?|Entraîne-toi un peu chaque jour et parle avec d'autres personnes.
Wie kann ich eine Sprache lernen?|Übe jeden Tag ein wenig und sprich mit anderen Menschen.
Why should I wash my hands?|Clean hands help you to stay healthy.
¿Por qué debo lavarme las manos?|Las manos limpias te ayudan a estar sano.
Pourquoi dois-je me laver les mains ?|Des mains propres t'aident à rester en bonne santé.
Warum soll ich mir die Hände waschen?|Saubere Hände helfen dir, gesund zu bleiben.
How can I be a good friend?|Listen well and be kind.
¿Cómo puedo ser un buen amigo?|Escucha bien y sé amable.
Comment être un bon ami ?|Écoute bien et sois gentil.
Wie kann ich ein guter Freund sein?|Hör gut zu und sei freundlich.
What can I do on the beach?|You can swim and play in the sand.
¿Qué puedo hacer en la playa?|Puedes nadar y jugar en la arena.
Que puis-je faire à la plage ?|Tu peux nager et jouer dans le sable.
Was kann ich am Strand machen?|Du kannst schwimmen und im Sand spielen.
What can I do with a ball?|You can throw it, catch it and roll it.
¿Qué puedo hacer con una pelota?|Puedes lanzarla, atraparla y hacerla rodar.
Que puis-je faire avec une balle ?|Tu peux la lancer, l'attraper et la faire rouler.
Was kann ich mit einem Ball machen?|Du kannst ihn werfen, fangen und rollen.
Tell me a short story.|A girl finds a little dog. Now they are best friends.
Cuéntame un cuento corto.|Una niña encuentra un perrito. Ahora son los mejores amigos.
Raconte-moi une petite histoire.|Une fille trouve un petit chien. Maintenant, ils sont les meilleurs amis du monde.
Erzähl mir eine kurze Geschichte.|Ein Mädchen findet einen kleinen Hund. Jetzt sind sie beste Freunde.
What is your favorite color?|I have no eyes, but I like the word blue.
¿Cuál es tu color favorito?|No tengo ojos, pero me gusta la palabra azul.
Quelle est ta couleur préférée ?|Je n'ai pas d'yeux, mais j'aime le mot bleu.
Was ist deine Lieblingsfarbe?|Ich habe keine Augen, aber ich mag das Wort blau.
Goodbye!|Goodbye! See you soon.
¡Adiós!|¡Adiós! Hasta pronto.
Au revoir !|Au revoir ! À bientôt.
Auf Wiedersehen!|Auf Wiedersehen! Bis bald.
"""
SAY = (
    'How do you say "{}" in {}?',
    "How do you say {} in {}?",
    'How do I say "{}" in {}?',
    'What is "{}" in {}?',
    'Translate "{}" into {}.',
    'Can you translate "{}" into {}?',
)
MEAN = (
    'What does the {1} {2} "{0}" mean?',
    'What does "{0}" mean in {1}?',
    'Translate the {1} {2} "{0}" into English.',
    'What does "{0}" mean?',
    'What is "{0}" in English?',
)
NAMED = 3  # the first of MEAN name the language: the only ones for a word that two languages share
SYSTEM = ("Answer in {}.", "Please answer in {}.", "Always answer in {}.", "Speak only {}.", "Use only {}.")
INLINE = ("{} Answer in {}.", "{} Please answer in {}.", "Answer in {1}: {0}", "In {1}, please: {0}")
ARTICLES = ("el ", "la ", "le ", "l'", "der ", "die ", "das ")
Row = dict[str, str]
Exchange = dict[str, tuple[str, str]]


def table(text: str) -> list[Row]:
    """A word or phrase by language, for each cell between semicolons."""
    cells = [cell for line in text.strip().splitlines() for cell in line.split(" ; ")]
    return [dict(zip(("English", *LANGUAGES), cell.split("|"), strict=True)) for cell in cells]


def exchanges() -> list[Exchange]:
    """Each exchange in all four languages: question and answer by language."""
    lines = [tuple(line.split("|")) for line in EXCHANGES.strip().splitlines()]
    return [dict(zip(("English", *LANGUAGES), lines[i : i + 4], strict=True)) for i in range(0, len(lines), 4)]


VOCABULARY = table(WORDS)
SENTENCES = table(PHRASES)
TALKS = exchanges()
ONE = next(i for i, row in enumerate(VOCABULARY) if row["English"] == "one")
NUMBERS = VOCABULARY[ONE : ONE + 10]


def is_noun(row: Row) -> bool:
    return row["Spanish"].startswith(ARTICLES)


def turn(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def translation(language: str, rng: random.Random) -> list[dict]:
    """A word or a phrase put into the language, or from it into English."""
    word = rng.random() < 0.7
    row = rng.choice(VOCABULARY if word else SENTENCES)
    english, foreign = row["English"].removesuffix("."), row[language].removesuffix(".")
    if rng.random() < 0.6:
        return turn(rng.choice(SAY).format(english, language), f'In {language}, "{english}" is "{foreign}".')
    several = word and sum(foreign in (row[other] for other in row if other != language) for row in VOCABULARY)
    question = rng.choice(MEAN[:NAMED] if several else MEAN).format(foreign, language, "word" if word else "phrase")
    meaning = f"the {english}" if word and is_noun(row) else english
    return turn(question, f'In {language}, "{foreign}" means "{meaning}".')


def count_up(language: str, rng: random.Random) -> list[dict]:
    last = rng.randint(3, 10)
    counted = ", ".join(row[language] for row in NUMBERS[:last])
    return turn(f"Count to {NUMBERS[last - 1]['English']} in {language}.", counted[0].upper() + counted[1:] + ".")


def talk(language: str, rng: random.Random) -> list[dict]:
    """One to three exchanges wholly in the language."""
    chosen = rng.sample(TALKS, rng.choice((1, 1, 2, 3)))
    return [message for exchange in chosen for message in turn(*exchange[language])]


def told_to(language: str, rng: random.Random) -> list[dict]:
    """A system message asks for the language; the questions are in it, or in English."""
    system = rng.choice((*(form.format(language) for form in SYSTEM), OWN_WORDS[language]))
    messages = [{"role": "system", "content": system}]
    for exchange in rng.sample(TALKS, rng.choice((1, 2))):
        asked = rng.choice(("English", "English", language))
        messages += turn(exchange[asked][0], exchange[language][1])
    return messages


def asked_for(language: str, rng: random.Random) -> list[dict]:
    """The question itself, in English, asks for the language."""
    exchange = rng.choice(TALKS)
    return turn(rng.choice(INLINE).format(exchange["English"][0], language), exchange[language][1])


KINDS: tuple[tuple[Callable[[str, random.Random], list[dict]], int], ...] = (
    (translation, 50),
    (count_up, 3),
    (talk, 25),
    (told_to, 14),
    (asked_for, 8),
)


def documents(rng: random.Random, count: int = 6000) -> Iterator[dict]:
    """`count` chats, about a third for each language, and a few of the same talks in English."""
    makers, weights = zip(*KINDS, strict=True)
    for _ in range(count):
        if rng.random() < 0.04:
            yield {"messages": talk("English", rng), "topic": "english", "kind": "language"}
            continue
        language = rng.choice(LANGUAGES)
        messages = rng.choices(makers, weights)[0](language, rng)
        yield {"messages": messages, "topic": language.lower(), "kind": "language"}


if __name__ == "__main__":
    print(f"{len(VOCABULARY)} words, {len(SENTENCES)} phrases, {len(TALKS)} exchanges in each language")
    for document in documents(random.Random(0), 30):
        print(json.dumps(document, ensure_ascii=False))
